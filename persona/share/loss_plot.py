"""The loss curve on a model card, as a PNG (loss.png): training loss, and the held-out loss of each evaluation."""

import math
from pathlib import Path

from persona.judge.charts import Axis, axis_ticks
from persona.store.files import open_atomic

Points = list[tuple[int, float]]
WIDTH, HEIGHT = 800, 400
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 20, 50
SCALE = 2  # drawn at twice the size and shrunk, for smooth lines
INK, GRID, TRAIN, HELD_OUT = "#333333", "#dddddd", "#9db8a5", "#1f6f43"


def draw_loss_plot(train: Points, held_out: Points, target: Path) -> bool:
    """Write `target`, a PNG of 800 × 400 pixels, from points (step, nats per learned token).

    With fewer than two finite points the file is removed, and the result is False.
    """
    from PIL import Image, ImageDraw, ImageFont

    train, held_out = ([(x, y) for x, y in points if math.isfinite(y)] for points in (train, held_out))
    points = train + held_out
    if len(points) < 2:
        target.unlink(missing_ok=True)
        return False
    losses, last = [y for _, y in points], max(1, *(x for x, _ in points))
    x_axis = Axis([0, last], LEFT * SCALE, (WIDTH - RIGHT) * SCALE)  # up to the last step, without a margin
    y_axis = Axis(axis_ticks(min(0.0, *losses), max(losses), 8), (HEIGHT - BOTTOM) * SCALE, TOP * SCALE)
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13 * SCALE)
    for tick in y_axis.ticks:
        y = y_axis.position(tick)
        pen.line([x_axis.start, y, x_axis.end, y], GRID, SCALE)
        pen.text((x_axis.start - 8 * SCALE, y), f"{tick:g}", INK, font, "rm")
    for tick in axis_ticks(0, last, 8):
        if tick <= last:
            pen.text((x_axis.position(tick), y_axis.start + 10 * SCALE), f"{tick:g}", INK, font, "mt")
    pen.text((WIDTH * SCALE / 2, (HEIGHT - 18) * SCALE), "step", INK, font, "mt")
    pen.text((10 * SCALE, 10 * SCALE), "loss, nats per learned token", INK, font, "lt")
    curves = [("training", TRAIN, train, 2), ("held out", HELD_OUT, held_out, 3)]
    for n, (name, colour, curve, width) in enumerate(curves):
        left, middle = (WIDTH - RIGHT - 190 + 100 * n) * SCALE, 17 * SCALE
        pen.line([left, middle, left + 20 * SCALE, middle], colour, 3 * SCALE)
        pen.text((left + 26 * SCALE, middle), name, INK, font, "lm")
        if len(curve) > 1:
            positions = [(x_axis.position(step), y_axis.position(loss)) for step, loss in curve]
            pen.line(positions, colour, width * SCALE, "curve")
    for step, loss in held_out:
        x, y, radius = x_axis.position(step), y_axis.position(loss), 4 * SCALE
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], HELD_OUT)
    with open_atomic(target) as out:
        image.resize((WIDTH, HEIGHT), Image.Resampling.BOX).save(out, "PNG", optimize=True)
    return True
