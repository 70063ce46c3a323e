"""`python -m persona.train RUN`: one run in this process."""

from persona.train.run import main

raise SystemExit(main())
