"""A page of picks that needs nothing beside it: the seed's prototypes, and what each sampler took from the pool."""

import base64
import functools
import io
from pathlib import Path

from PIL import Image

from longtail.images import pixels
from longtail.pick.samplers import SAMPLERS

EXAMPLES = 4        # picks of each sampler that are shown with the seed images nearest to them
TYPICAL = 8         # seed images shown for a prototype
SIDE = 96           # of a thumbnail, pixels


@functools.cache
def thumbnail(read):
    """The picture in a file, as an address that holds it."""
    with io.BytesIO() as file:
        Image.fromarray(pixels.decoded(read(), SIDE)).save(file, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def render(request, run, study, found, picks, seed, average, said):
    """The page as text.

    ``study``: what was picked from and for, ``found``: seed and pool as they lie in their places. ``picks``, ``seed``: rows of picks and
    of seed images with what is nearest to them. ``average``: ECLE and distance of the whole pool.
    """
    import jinja2
    files = [dict(part.files) for part in found]
    page = jinja2.Template(Path(__file__).with_name("gallery.html").read_text(encoding="utf-8"), autoescape=True)
    return page.render(
        request=request, run=run, study=study, average=average,
        settings={name: value for name, value in vars(request).items() if name not in ("name", "folder")},
        broken=sum(len(part.broken) for part in found), said=said,
        prototypes=[prototype(number, rows, picks, files[0]) for number, rows in seed.groupby("prototype")],
        samplers=[sampler(name, picks[picks.sampler == name], request.shown, study, files) for name in request.samplers])


def prototype(number, rows, picks, files):
    """What the page says of one prototype: how many seed images and picks are nearest to it, and the seed images closest to it."""
    closest = rows.sort_values("closeness", ascending=False, kind="stable").name[:TYPICAL]
    return {"number": number, "count": len(rows), "images": [(name, thumbnail(files[name])) for name in closest],
            "picks": picks[picks.prototype == number].sampler.value_counts()}


def sampler(name, picks, shown, study, files):
    """What the page says of one sampler: its picks, and the first of them with the seed images nearest to them."""
    seed, pool, _ = files
    cards = [{**pick, "image": thumbnail(pool[pick["name"]])} for pick in picks.head(shown).to_dict("records")]
    for card in cards[:EXAMPLES]:
        places = [int(key.removeprefix("seed_")) for key in card if key.startswith("seed_")]
        names = {place: study.seed.names[card[f"seed_{place}"]] for place in places}
        card["nearest"] = [(names[place], thumbnail(seed[names[place]]), card[f"similarity_{place}"]) for place in places]
    return {"name": name, "takes": SAMPLERS[name].takes, "cards": cards, "count": len(picks), "examples": cards[:EXAMPLES],
            "ecle": picks.ecle.mean(), "distance": picks.distance.mean(), "prototypes": picks.prototype.nunique()}
