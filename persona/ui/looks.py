"""How the page looks: theme and style sheet. No web fonts: the page asks nobody but its own server."""

import gradio as gr

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
    block_shadow="none",
    block_title_text_weight="600",
)

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#brand h1 { font-size: 1.5rem; margin: 0; letter-spacing: -.01em; }
#brand p { margin: .1rem 0 0; color: var(--body-text-color-subdued); }
.quiet, .quiet p { color: var(--body-text-color-subdued); font-size: .92rem; }
.status { min-height: 1.4rem; }
.card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 14px 16px;
        background: var(--background-fill-primary); }
.next { align-self: flex-end; }
.slim { align-items: end; }
.mask { font-family: var(--font-mono); font-size: .95rem; line-height: 2; white-space: pre-wrap;
        word-break: break-word; }
.mask span { border-radius: 4px; padding: 2px 1px; }
.mask .learned { background: #bbf0d4; color: #064e3b; }
.mask .masked { background: #efedea; color: #57534e; }
.mask .special { outline: 1px dashed #a8a29e; outline-offset: -1px; font-size: .82em; }
.mask .cut { background: #fee2e2; color: #991b1b; text-decoration: line-through; }
.dark .mask .learned { background: #065f46; color: #ecfdf5; }
.dark .mask .masked { background: #3a3632; color: #d6d3d1; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 16px; font-size: .85rem; margin-bottom: 8px;
          color: var(--body-text-color-subdued); }
.legend b { font-weight: 600; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .35em;
            vertical-align: -1px; }
.legend .learned { background: #34b27b; } .legend .masked { background: #a8a29e; }
.problem { border-left: 3px solid #dc2626; padding: 4px 0 4px 10px; margin: 6px 0; }
.good { border-left: 3px solid #059669; padding: 4px 0 4px 10px; margin: 6px 0; }
.hint { border-left: 3px solid #d97706; padding: 4px 0 4px 10px; margin: 6px 0; }
.bar { height: 10px; border-radius: 5px; background: var(--border-color-primary); overflow: hidden; margin: 8px 0; }
.bar div { height: 100%; background: #059669; transition: width .6s; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin-top: 6px; }
.facts div { min-width: 90px; } .facts b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.facts span { font-size: .82rem; color: var(--body-text-color-subdued); }
.turn { color: var(--body-text-color-subdued); font-size: .9rem; margin: 2px 0; }
#head { align-items: center; }
@media (max-width: 640px) {
  #head { flex-wrap: wrap; } #head > * { flex: 1 1 100% !important; }
  #pairs { max-width: calc(100vw - 64px); overflow-x: auto; }
  #step-write, #step-write > * { min-width: 0; }
}
"""
