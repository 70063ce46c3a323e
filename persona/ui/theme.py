"""Theme and style sheet of the page. No web fonts: the page loads nothing from other servers."""

from pathlib import Path

import gradio as gr

from persona.template.mask_html import mask_css

_FONT = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Consolas", "Noto Sans Mono CJK SC", "monospace"]

# darker than the theme's own where white text or small grey text would fall under a contrast of 4.5 : 1
THEME = gr.themes.Default(
    primary_hue="emerald", secondary_hue="emerald", neutral_hue="stone", font=_FONT, font_mono=_MONO, radius_size="md"
).set(
    body_background_fill="*neutral_50",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_text_color="white",
    color_accent="*primary_700",
    link_text_color="*primary_800",
    link_text_color_hover="*primary_700",
    link_text_color_visited="*primary_800",
    link_text_color_dark="*primary_300",
    link_text_color_visited_dark="*primary_300",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
    button_cancel_background_fill_dark="#b91c1c",
    button_cancel_text_color="white",
    block_shadow="none",
    block_title_text_weight="600",
)

CSS = mask_css() + (Path(__file__).parent / "theme.css").read_text(encoding="utf-8")
