"""The subjects of `campaign`: every command, its inputs and results."""

from reliability.processes import ROOT
from reliability.subject import DAMAGE, FULL, KILL, PAIR, READ_ONLY, Subject, Unseen
from reliability.subject_inputs import MIL, MIL_TRAIN, THREE_METHODS, Command, module, train

_USERS = "a user's choice of files and values, which has another result by right"
_EVALUATE = module("evaluate", "--workdir=run")
_COMPARE = ("--num=2", "--explainers=attention,contribution")
_DAMAGE_ALONE = (DAMAGE,)
_CACHES = ("data/digit_scenes/1.0.0/cache_*.npz", "data/digit_scenes/1.0.0/shard_digests.json")
_ALL_OF_DATA = ("data/**/*",)


def _convert(weights: str) -> Command:
    config = (word for word in train("new") if word.startswith("--config"))
    return module("convert", f"--from={weights}", "--workdir=new", *config)


SUBJECTS = (
    Subject(
        "train",
        train("run"),
        ("data",),
        results=("run/metrics.jsonl", "run/config.json"),
        workdirs=("run",),
        damages=("run/**/*",),
        aims=("run/config.json", "run/data.json", "run/metrics.jsonl", "run/checkpoints/*"),
        logs=("run/metrics.jsonl",),
        unseen=(
            Unseen(
                "run/checkpoints/*/_METADATA",
                ("removed",),
                "training reads a checkpoint without it, and only the campaign's own look at the bits "
                "cannot; evaluate is tried so",
            ),
        ),
    ),
    Subject(
        "train",
        train("run"),
        ("data",),
        case="damaged data",
        workdirs=("run",),
        damages=_ALL_OF_DATA,
        fresh=True,
        kinds=_DAMAGE_ALONE,
    ),
    Subject(
        "evaluate",
        _EVALUATE,
        ("data", "run", "other"),
        results=("run/evaluation_test.json",),
        damages=("run/**/*",),
        aims=("run/evaluation_test.json",),
        prints=True,
    ),
    *(
        Subject(
            "evaluate",
            _EVALUATE,
            ("data", "run"),
            case=case,
            without=without,
            results=("run/evaluation_test.json",),
            damages=_ALL_OF_DATA,
            fresh=True,
            prints=True,
            kinds=_DAMAGE_ALONE,
        )
        for case, without in (("damaged data", ()), ("damaged data without caches", _CACHES))
    ),
    Subject(
        "explain",
        module("explain", "--workdir=run", "--num=2"),
        ("data", "run"),
        results=("run/report/**/*",),
        damages=("run/**/*",),
        aims=("run/report", "run/report/images", "run/report/index.html"),
        weight=0.3,
    ),
    Subject(
        "explain",
        module("explain", "--workdir=run", "--images=own", "--out=report"),
        ("run", "own"),
        case="own images",
        results=("report/**/*",),
        damages=("own/*",),
        fresh=True,
        unseen=(Unseen("own/*", ("swapped", "removed", "edited", "doubled"), _USERS),),
    ),
    Subject(
        "compare_explainers",
        module("compare_explainers", "--workdir=run", *_COMPARE),
        ("data", "run"),
        results=("run/compare_explainers.json",),
        damages=("run/**/*",),
        aims=("run/compare_explainers.*",),
        prints=True,
        weight=0.15,
    ),
    Subject(
        "explanation_table",
        module("explain.explanation_table", "--runs=run,other", "--table=t.md", "--record=t.json"),
        ("data", "run", "other"),
        before=(
            *(module("evaluate", f"--workdir={run}") for run in ("run", "other")),
            *(
                module("compare_explainers", f"--workdir={run}", *_COMPARE)
                for run in ("run", "other")
            ),
        ),
        results=("t.md", "t.json"),
        damages=("run/*", "t.*"),
        aims=("t.*",),
        prints=True,
    ),
    Subject(
        "export_maps",
        module("export_maps", "--workdir=run", "--out=maps"),
        ("data", "run", "other"),
        before=(module("export_maps", "--workdir=other", "--out=other_maps"),),
        stores=("maps",),
        damages=("maps/**/*",),
        aims=("maps", "maps/zarr.json", "maps/done/c/*", "maps/pixels/c/**/*"),
    ),
    Subject(
        "convert --from",
        _convert("weights.npz"),
        ("weights.npz",),
        results=("new/config.json",),
        workdirs=("new",),
        damages=("weights.npz",),
        once=True,
        fresh=True,
        aims=("new", "new/config.json", "new/checkpoints", "new/checkpoints/*"),
        unseen=(Unseen("weights.npz", ("swapped",), _USERS),),
    ),
    Subject(
        "convert --from",
        _convert("weights.safetensors"),
        ("weights.safetensors",),
        case="safetensors",
        results=("new/config.json",),
        workdirs=("new",),
        damages=("weights.safetensors",),
        once=True,
        fresh=True,
        unseen=(
            Unseen("weights.safetensors", ("swapped",), _USERS),
            Unseen(
                "weights.safetensors",
                ("bit", "edited"),
                "the format has no checksum: other numbers of the same shapes are other weights",
            ),
        ),
        kinds=_DAMAGE_ALONE,
    ),
    Subject(
        "convert --to",
        module("convert", "--workdir=run", "--to=new.npz"),
        ("run", "other"),
        results=("new.npz",),
        damages=("run/**/*", "new.npz"),
        aims=("new.npz",),
    ),
    Subject(
        "replay",
        module("replay", "--dump=dump/nonfinite/step_1"),
        ("dump",),
        damages=("dump/nonfinite/**/*",),
        prints=True,
        weight=0.5,
    ),
    Subject(
        "data.prepare",
        ("-m", "reliability.small_scenes", "--data_dir=data"),
        ("run",),
        after=(_EVALUATE, (*_EVALUATE, "--split=train")),
        results=("run/evaluation_*.json",),
        damages=_ALL_OF_DATA,
        aims=("data", "data/digit_scenes/*", "data/digit_scenes/*/cache_*"),
    ),
    Subject(
        "mil",
        (*MIL, THREE_METHODS, "--dataset=bags.csv", "--workdir=mil"),
        ("bags.csv", "other_mil"),
        results=("mil/*", "mil/*/*", "mil/*/*/*", "mil/*/*/*/*"),
        damages=("mil/**/*",),
        aims=("mil/config.json", "mil/bags/data.json", "mil/bags/*/final/*", "mil/table.md"),
        prints=True,
    ),
    Subject(
        "mil.train",
        MIL_TRAIN,
        ("bag_files", "bag_files.csv"),
        results=("model/model.json", "model/arrays.npz", "model/predictions.csv"),
        damages=("model/**/*",),
        aims=("model/*", "model/checkpoints/*"),
        prints=True,
    ),
    Subject(
        "mil.predict",
        module("mil.predict", "--model=model", "--bags=bag_files", "--out=said", "--instances"),
        ("bag_files", "model"),
        results=("said/**/*",),
        damages=("said/**/*", "model/**/*"),
        aims=("said/*", "said/*/*"),
    ),
    Subject(
        "mil.tables",
        module("mil.tables", "--runs=mil,other_mil", "--table=t.md", "--record=t.json"),
        ("mil", "other_mil"),
        results=("t.md", "t.json"),
        damages=("mil/**/*", "t.*"),
        aims=("t.*",),
        prints=True,
    ),
    Subject(
        "mil.lambdas",
        module(
            *(
                "mil.lambdas",
                f"--config={ROOT / 'configs' / 'mil_mnist.py'}",
                "--data_dir=digits.npz",
            ),
            *("--workdir=lambdas", "--lambdas=0,1", "--repeats=1", "--config.train.epochs=4"),
            *("--config.bags.train=6", "--config.bags.test=6"),
        ),
        ("digits.npz",),
        results=("lambdas/**/*",),
        damages=("lambdas/**/*", "digits.npz"),
        aims=("lambdas/*", "lambdas/*/*"),
        unseen=(Unseen("digits.npz", ("swapped",), _USERS),),
        weight=0.5,
    ),
    Subject(
        "mil.replay",
        module(
            "mil.replay",
            "--dump=mil_dump/bags/loss_attention/nonfinite/model_0_epoch_1_update_1",
        ),
        ("mil_dump",),
        damages=("mil_dump/bags/**/*",),
        prints=True,
    ),
    Subject("models", module("models", "--list"), prints=True, kinds=(KILL, FULL, PAIR, READ_ONLY)),
)
