"""The page, from a checkout and as a Space: `python app.py` takes the options of `persona page`."""

import sys

if __name__ == "__main__":
    from persona.cli import main  # neither torch nor Gradio: --help waits for nothing

    raise SystemExit(main(["page", *sys.argv[1:]]))

from persona.ui import server

demo = server.build_page()  # where Gradio's own tools look for it
