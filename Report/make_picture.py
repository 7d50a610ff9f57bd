"""Draw README's first picture, figures/first.png: what captions of held-out images give, before and after.

python Report/make_picture.py   # after notebook 04, whose run it shows; a minute
"""

from dasd_utils import data, figures, sampling
from dasd_utils.config import Config, resolve
from dasd_utils.runtime import checkpoints

LESSON = "data/runs/course/dasd"
COLUMNS = 5  # the first captions of each domain's test split, with noise 0, 1, ...


def draw(columns: int = COLUMNS) -> figures.Figure:
    """Return rows of images: held out, by the base, by the run of notebook 04, and by the shipped run."""
    config = Config.setup("tiny")
    lesson = checkpoints.find_trained(config.replace(output_dir=LESSON, shipped_run=None))
    models = {
        "base": sampling.load_base_pipeline(config),
        "notebook 04": sampling.load_trained_pipeline(lesson, config),
        "shipped run": sampling.load_trained_pipeline(resolve(config.shipped_run), config),
    }
    rows, heads = {"held out": []} | {name: [] for name in models}, []
    for domain in config.domains:
        found = data.load_domain(domain, config, "test")
        captions = [found.captions[i][0] for i in range(columns)]
        heads += captions
        rows["held out"] += [found[i]["image"] for i in range(columns)]
        for name, pipeline in models.items():
            own = None if name == "base" else domain.name
            settings = domain.calibration
            rows[name] += pipeline.generate(captions, own, seed=range(columns), settings=settings)[0]
    return figures.comparison_grid(rows, heads, cell=0.9)


if __name__ == "__main__":
    figures.save(draw(), resolve("figures/first.png"), dpi=110)
