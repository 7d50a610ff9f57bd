"""Imports run one way, as the table says; a module may import what stands behind it and nothing else."""

import ast
from pathlib import Path

import dasd_utils

PACKAGE = Path(dasd_utils.__file__).parent
CORE = {
    "config": set(),
    "bars": {"live"},
    "checks": {"config"},
    "completion": {"checks", "config", "profiles"},
    "doctor": {"config", "machines", "precision", "profiles"},
    "machines": set(),
    "processes": {"config"},
    "profiles": {"config"},
    "toyworld": set(),
    "images": {"config"},
    "splits": set(),
    "captions": {"config", "images"},
    "captioner": {"captions", "config", "images", "precision", "pretrained"},
    "data": {"captions", "config", "images", "latents", "prior", "splits", "toyworld"},
    "prior": {
        "adapters", "cache", "checkpoints", "config", "data", "images", "locks", "models", "precision",
        "samples", "sampling",
    },
    "locks": set(),
    "cache": {"config", "images", "locks", "precision"},
    "latents": {"cache", "config", "processes"},
    "pretrained": {"config"},
    "cross_attention": set(),
    "models": {"config", "cross_attention", "pretrained"},
    "textfree": {"cross_attention", "denoising", "models"},
    "adapters": {"config", "cross_attention", "models"},
    "losses": set(),
    "objectives": {"config", "data", "losses", "models", "processes"},
    "papers": {
        "checks", "classifier", "config", "denoising", "latents", "metrics", "models", "objectives",
        "pretrained", "processes",
    },
    "methods": {"config", "objectives", "papers"},
    "precision": {"config", "processes"},
    "optimization": {"adapters", "checkpoints", "config", "models", "precision", "processes"},
    "batch_size": {"checkpoints", "config", "latents", "methods", "models", "optimization", "processes"},
    "checkpoints": {"config"},
    "training": {
        "adapters", "checkpoints", "config", "data", "losses", "methods", "models", "objectives",
        "optimization", "precision", "processes", "runs", "textfree", "tracking",
    },
    "tracking": {"checkpoints", "config", "processes"},
    "verification": {"checkpoints", "config", "data", "methods", "training"},
    "classifier": {"config"},
    "guidance": {"config"},
    "denoising": {"checks", "config", "guidance", "images"},
    "jobs": {"config", "guidance"},
    "editing": {"config", "denoising", "guidance", "images", "jobs", "models", "sampling"},
    "sampling": {
        "adapters", "classifier", "config", "denoising", "guidance", "jobs", "models", "precision",
        "processes",
    },
    "metrics": {"losses"},
    "manifold": set(),
    "uncertainty": set(),
    "probe": {"images"},
    "files": {"config"},
    "samples": {"config", "files"},
    "evaluation": {"config", "files", "metrics", "pretrained", "reader"},
    "scores": {"config", "data", "evaluation", "manifold", "metrics", "probe", "uncertainty"},
    "calibration": {
        "checkpoints", "config", "evaluation", "files", "metrics", "sampling", "scores", "uncertainty",
    },
    "ladder": {
        "calibration", "config", "data", "evaluation", "files", "methods", "models", "probe", "profiles",
        "runs", "samples", "sampling", "scores", "training",
    },
    "standings": {"calibration", "config", "evaluation", "ladder", "scores", "uncertainty"},
    "fronts": {"config", "evaluation", "ladder", "scores", "standings", "uncertainty"},
    "translation": {"config", "denoising", "editing", "guidance", "images", "sampling"},
    "adaptation": {"probe", "uncertainty"},
    "translated": {
        "adapters", "cache", "checkpoints", "config", "data", "files", "images", "ladder", "papers",
        "precision", "runs", "samples", "sampling", "translation",
    },
    "adaptation_study": {
        "adaptation", "config", "data", "evaluation", "files", "images", "metrics", "probe", "runs",
        "sampling", "scores", "translated",
    },
    "label_shift": {"adaptation", "hspace"},
    "records": {"metrics", "uncertainty"},
    "export": {"adapters", "checkpoints", "config", "files", "pretrained"},
    "model_card": {"adapters", "config", "evaluation", "export"},
    "publish": {"checkpoints", "config", "export"},
    "hspace": {"editing", "images", "models", "objectives", "precision", "sampling"},
    "anatomy": {"config", "data", "losses", "metrics", "models", "objectives", "optimization"},
    "workers": {"config"},
    "sweep": {"batch", "config", "evaluation"},
    "figures": set(),
    "animation": {"config", "figures", "files"},
    "charts": {"figures"},
    "front_charts": {"figures"},
    "diagram": {"figures"},
    "new_domain": {
        "captioner", "captions", "classifier", "config", "data", "files", "pretrained", "wordings",
    },
    "wordings": {"captions"},
    "study": {"config", "data", "evaluation", "sampling"},
    "badges": {"config", "files"},
    "colab": {"machines"},
    "freshness": {"badges", "config"},
    "batch": {"config", "freshness"},
    "runs": {"checkpoints", "config", "locks", "processes"},
    "live": set(),
    "drawings": {"adapters", "config", "files", "guidance", "sampling"},
    "playground_fields": {"config", "drawings", "guidance", "live"},
    "playground": {"config", "drawings", "live", "playground_fields", "runs", "sampling"},
    "monitor": {"config", "figures", "live", "training"},
    "reader": {"config", "images"},
    "pretrain": {
        "checkpoints", "config", "evaluation", "images", "losses", "metrics", "models", "reader", "runs",
        "sampling", "toyworld",
    },
}  # fmt: skip
ANY = {"__init__"}  # and the commands: cli, cli_*


class _WithoutTypeImports(ast.NodeTransformer):
    """Drop `if TYPE_CHECKING:` blocks, which no run executes."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imported(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, inside functions too, but not for types."""
    found = set()
    for node in ast.walk(_WithoutTypeImports().visit(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "dasd_utils":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dasd_utils."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dasd_utils.")}
    return found


def test_imports_follow_the_table():
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if module in ANY or module.split("_")[0] == "cli":
            continue
        assert module in CORE, f"{module} is not in the table of imports"
        allowed = CORE[module] | {module, "bars"}  # any long step may draw one
        if module in ("config", "checks"):  # inside functions: these are made of its classes
            allowed = allowed | {"checks", "machines", "methods", "profiles"}
        assert imported(path) <= allowed, f"{path.name} imports {imported(path) - allowed}"


def test_no_star_imports():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) else []
            assert "*" not in names, path
