"""The loss of a run as a picture for its card: training loss, and the held-out loss of each evaluation."""

import math
from pathlib import Path

Points = list[tuple[int, float]]
WIDTH, HEIGHT = 800, 400
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 20, 50
FINE = 2  # drawn at twice the size and shrunk: lines without steps
INK, GRID, TRAIN, HELD = "#333333", "#dddddd", "#9db8a5", "#1f6f43"


def draw_loss_plot(train: Points, held: Points, target: Path) -> bool:
    """Write `target`, a PNG of 800 × 400, from (step, nats per learned token).

    False, and no file, where fewer than two points are known.
    """
    from PIL import Image, ImageDraw, ImageFont

    train, held = ([(x, y) for x, y in line if math.isfinite(y)] for line in (train, held))
    every = train + held
    if len(every) < 2:
        target.unlink(missing_ok=True)
        return False
    last = max(max(x for x, _ in every), 1)
    ticks = make_axis_ticks(min(0.0, *(y for _, y in every)), max(y for _, y in every))

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / last
        down = TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - y) / (ticks[-1] - ticks[0])
        return across * FINE, down * FINE

    image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13 * FINE)
    for y in ticks:
        pen.line([at(0, y), at(last, y)], GRID, FINE)
        pen.text((at(0, y)[0] - 8 * FINE, at(0, y)[1]), f"{y:g}", INK, font, "rm")
    for x in make_axis_ticks(0, last):
        if x <= last:
            pen.text((at(x, 0)[0], (HEIGHT - BOTTOM + 10) * FINE), f"{x:g}", INK, font, "mt")
    pen.text((WIDTH * FINE / 2, (HEIGHT - 18) * FINE), "step", INK, font, "mt")
    pen.text((10 * FINE, 10 * FINE), "loss, nats per learned token", INK, font, "lt")
    for n, (name, colour, line, width) in enumerate([("training", TRAIN, train, 2), ("held out", HELD, held, 3)]):
        place = (WIDTH - RIGHT - 190 + 100 * n) * FINE
        pen.line([place, 17 * FINE, place + 20 * FINE, 17 * FINE], colour, 3 * FINE)
        pen.text((place + 26 * FINE, 17 * FINE), name, INK, font, "lm")
        if len(line) > 1:
            pen.line([at(*p) for p in line], colour, width * FINE, "curve")
    for x, y in held:
        across, down = at(x, y)
        pen.ellipse([across - 4 * FINE, down - 4 * FINE, across + 4 * FINE, down + 4 * FINE], HELD)
    image.resize((WIDTH, HEIGHT), Image.Resampling.BOX).save(target, "PNG", optimize=True)
    return True


def make_axis_ticks(low: float, high: float) -> list[float]:
    """Two to ten round numbers from at most `low` to at least `high`."""
    span = max(high - low, 1e-6)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= 8)
    first = math.floor(low / step)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(n * step, 10) for n in range(first, last + 1)]
