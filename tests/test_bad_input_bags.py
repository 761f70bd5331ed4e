"""What the commands for bags make of wrong input: see `test_bad_input`."""

import pytest

from reliability import in_process
from tests.support import bad_input

MIL = ("-m", "lossattn_jax.mil", "--workdir={w}/new")
BAGS = (*MIL, "--dataset={w}/good.csv", "--folds=2", "--repeats=1")
DIGITS = (*MIL, "--dataset=mnist_bags", "--data_dir={w}/right_digits.npz")
LAMBDAS = ("-m", "lossattn_jax.mil.lambdas", "--workdir={w}/new")
TABLES = ("-m", "lossattn_jax.mil.tables")
ONE = ("-m", "lossattn_jax.mil.train", "--workdir={w}/new")
PREDICT = ("-m", "lossattn_jax.mil.predict", "--out={w}/new")
REPORT = ("-m", "lossattn_jax.mil.explain", "--out={w}/new")
REPLAY = ("-m", "lossattn_jax.replay")
TO_TABLE = ("--table={w}/t.md", "--record={w}/t.json")

FILES = [
    ("absent.csv", "the file {w}/absent.csv does not exist"),
    ("empty.csv", "{w}/empty.csv is empty"),
    ("header.csv", "{w}/header.csv has no instance"),
    ("no_label.csv", "the first line of {w}/no_label.csv names no column 'bag_label'"),
    ("no_feature.csv", "{w}/no_feature.csv has no column but bag_label, bag_id"),
    ("twice.csv", "{w}/twice.csv has two columns 'bag_id'"),
    ("ragged.csv", "line 10 of {w}/ragged.csv has 2 fields, but the header has 3"),
    ("words.csv", "line 10 of {w}/words.csv has 'many', which is not a number"),
    ("nan.csv", "line 10 of {w}/nan.csv has the value nan"),
    ("infinite.csv", "line 10 of {w}/infinite.csv has the value inf"),
    ("huge.csv", "line 10 of {w}/huge.csv has the value 1e+39"),
    ("conflict.csv", "line 10 of {w}/conflict.csv has the label '1' for bag 'b0', which had '0'"),
    ("no_id.csv", "line 10 of {w}/no_id.csv has an empty bag id"),
    ("one_class.csv", "all bags of {w}/one_class.csv have the label 1"),
    ("quote.csv", "{w}/quote.csv is not CSV"),
    ("escape.csv", r"line 10 of {w}/escape.csv has '\x1b[31mred', which is not a number"),
    ("own_label.csv", "line 2 of {w}/own_label.csv has the instance_label '7', but allowed"),
    ("binary.csv", "{w}/binary.csv is not text in UTF-8"),
    ("cut.csv.gz", "{w}/cut.csv.gz is damaged"),
    ("plain.csv.gz", "{w}/plain.csv.gz is not compressed as its name says"),
    ("bad.mat", "{w}/bad.mat cannot be read as a MATLAB file"),
    ("bad.data", "line 2 of {w}/bad.data has 3 fields"),
    ("bad.data.Z", "{w}/bad.data.Z is damaged"),
    ("folder.csv", "the file {w}/folder.csv cannot be read"),
    ("good.npz", "the data set of bags '{w}/good.npz' is not known; allowed are musk1"),
]

CASES = [
    *(((*MIL, f"--dataset={{w}}/{name}", "--folds=2"), told) for name, told in FILES),
    (MIL, "--dataset"),
    ((*MIL, "--dataset="), "dataset"),
    ((*MIL, "--dataset=musk1", "--data_dir={w}/nowhere"), "musk1 is not in {w}/nowhere"),
    ((*MIL, "--dataset=mnist_bags", "--data_dir={w}/absent.npz"), "{w}/absent.npz does not exist"),
    ((*MIL, "--dataset=mnist_bags", "--data_dir={w}/digits.npz"), "{w}/digits.npz holds images"),
    (
        (*MIL, "--dataset=mnist_bags", "--data_dir={w}/no_digits.npz"),
        "must hold the arrays 'image'",
    ),
    ((*MIL, "--dataset=mnist_bags", "--data_dir={w}/pickled_digits.npz"), "{w}/pickled_digits.npz"),
    ((*BAGS, "--method=magic"), "'magic'"),
    ((*BAGS, "--method="), "method"),
    ((*BAGS, "--select=luck"), "'luck'"),
    ((*BAGS, "--folds=0"), "config.folds is 0, but must be"),
    ((*BAGS, "--folds=1"), "folds"),
    ((*BAGS, "--folds=-3"), "config.folds is -3, but must be"),
    ((*BAGS, "--folds=9"), "9"),
    ((*BAGS, "--folds=99999999999999999999"), "99999999999999999999"),
    ((*BAGS, "--repeats=0"), "config.repeats is 0, but must be a whole number"),
    ((*BAGS, "--config={w}/absent.py"), "the config file '{w}/absent.py' does not exist"),
    ((*BAGS, "--config.speed=2"), "config.speed is not a config key"),
    ((*BAGS, "--config.seed=-1"), "config.seed is -1, but must be between 0"),
    ((*BAGS, "--config.train.epochs=0"), "config.train.epochs is 0"),
    ((*BAGS, "--config.optimizer.learning_rate=nan"), "config.optimizer.learning_rate is nan"),
    ((*BAGS, "--config.optimizer.learning_rate=-1"), "config.optimizer.learning_rate is -1.0"),
    ((*BAGS, "--config.optimizer.weight_decay=inf"), "config.optimizer.weight_decay is inf"),
    ((*BAGS, "--config.train.max_skipped=0"), "config.train.max_skipped is 0, but must be"),
    ((*BAGS, "--config.model.backbone=vgg"), "vgg"),
    ((*BAGS, "--config.model.dropout=nan"), "dropout"),
    ((*BAGS, "--config.model.dropout=1"), "dropout"),
    ((*BAGS, "--config.model.ensemble=0"), "ensemble"),
    ((*BAGS, "--config.model.hidden=(0,)"), "hidden"),
    ((*BAGS, "--config.validation.share=2"), "config.validation"),
    ((*BAGS, "--config.validation.splits=0"), "config.validation"),
    ((*BAGS, "--config.bags.test=0"), "config.bags"),
    (
        (*MIL, "--dataset=single_concept", "--config.bags.mean_length=5"),
        "config.bags.mean_length is 5, but the bags of single_concept have no such setting",
    ),
    ((*DIGITS, "--config.bags.mean_length=-5"), "the mean length of mnist_bags is -5, but must be"),
    (
        (*DIGITS, "--config.bags.targets=(3,3)"),
        "the targets of mnist_bags are (3, 3), but must differ",
    ),
    ((*DIGITS, "--config.bags.train=(0,)"), "config.bags.train"),
    ((*DIGITS, "--config.bags.mean_length=99"), "only 9 images have a label that is no target"),
    ((*BAGS, "--workdir={w}/good.csv"), "{w}/good.csv"),
    ((*BAGS, "--workdir={w}/good.csv/run"), "{w}/good.csv/run"),
    (
        (*BAGS, "--workdir={w}/other_bags", "--folds=3"),
        "config.folds is 3, but the run in {w}/other_bags",
    ),
    ((*BAGS, "--workdir={w}/cut_bags"), "{w}/cut_bags/config.json cannot be read as a config"),
    # train
    ((*ONE, "--dataset={w}/absent.csv"), "the file {w}/absent.csv does not exist"),
    ((*ONE, "--dataset={w}/nan.csv"), "line 10 of {w}/nan.csv has the value nan"),
    ((*ONE, "--dataset={w}/good.csv", "--method=magic"), "'magic'"),
    (
        (*ONE, "--dataset={w}/good.csv", "--memory=-1"),
        "memory is -1.0, but must be a number of GiB",
    ),
    (
        (*BAGS, "--method=attention,mi_svm,mi_fv", "--max_instances=5"),
        "config.train.max_instances is 5, but mi_svm, mi_fv see all instances at once; leave it out",
    ),
    (
        (*ONE, "--dataset={w}/good.csv", "--max_instances=-1"),
        "config.train.max_instances is -1, but must be",
    ),
    # predict
    ((*PREDICT, "--bags={w}"), "--model"),
    ((*PREDICT, "--model={w}/nowhere", "--bags={w}"), "{w}/nowhere"),
    ((*PREDICT, "--model={w}/good.csv", "--bags={w}"), "{w}/good.csv"),
    ((*PREDICT, "--model={w}/run", "--bags={w}/nowhere"), "{w}/"),
    # explain
    ((*REPORT, "--bags={w}"), "--model"),
    ((*REPORT, "--model={w}/nowhere", "--bags={w}"), "{w}/nowhere"),
    ((*REPORT, "--model={w}/good.csv", "--bags={w}"), "{w}/good.csv"),
    # lambdas
    (LAMBDAS, "--data_dir"),
    ((*LAMBDAS, "--data_dir={w}/absent.npz"), "the file {w}/absent.npz does not exist"),
    ((*LAMBDAS, "--data_dir={w}/digits.npz"), "{w}/digits.npz holds images"),
    (
        (*LAMBDAS, "--data_dir={w}/nowhere"),
        "mnist is not prepared (as array_record) in {w}/nowhere",
    ),
    ((*LAMBDAS, "--data_dir={w}/digits.npz", "--lambdas=few"), "--lambdas has 'few'"),
    ((*LAMBDAS, "--data_dir={w}/digits.npz", "--lambdas=-1"), "lambdas are [-1.0], but must be"),
    ((*LAMBDAS, "--data_dir={w}/digits.npz", "--lambdas=nan"), "lambdas are [nan], but must be"),
    (
        (*LAMBDAS, "--data_dir={w}/digits.npz", "--lambdas=0,inf"),
        "lambdas are [0.0, inf], but must",
    ),
    ((*LAMBDAS, "--data_dir={w}/digits.npz", "--lambdas="), "lambdas are [], but must be at least"),
    ((*LAMBDAS, "--data_dir={w}/digits.npz", "--repeats=0"), "config.repeats is 0, but must be"),
    (
        (*LAMBDAS, "--data_dir={w}/digits.npz", "--dataset=musk1"),
        "dataset is 'musk1', but must be one of",
    ),
    # tables
    ((*TABLES, *TO_TABLE), "--runs"),
    ((*TABLES, "--runs={w}/nowhere", *TO_TABLE), "the run {w}/nowhere does not exist"),
    ((*TABLES, "--runs={w}/folder.csv", *TO_TABLE), "{w}/folder.csv has no summary.json"),
    (
        (*TABLES, "--runs={w}/good.csv", *TO_TABLE),
        "{w}/good.csv holds a summary that cannot be read",
    ),
    ((*TABLES, "--runs={w}/binary.csv", *TO_TABLE), "{w}/binary.csv holds a summary that cannot"),
    ((*TABLES, "--runs={w}/number.json", *TO_TABLE), "{w}/number.json holds a summary that cannot"),
    ((*TABLES, "--runs={w}/odd.json", *TO_TABLE), "{w}/odd.json holds a summary that cannot"),
    (
        (*TABLES, "--runs={w}/summaries.json,{w}/summaries.json", *TO_TABLE),
        "{w}/summaries.json has loss_attention on own under the rule final, which another run",
    ),
    (
        (*TABLES, "--runs={w}/summaries.json", "--table={w}/good.csv/t.md", "--record={w}/t.json"),
        "{w}/good.csv/t.md cannot be written",
    ),
    (
        (*TABLES, "--runs={w}/summaries.json", "--table={w}/folder.csv", "--record={w}/t.json"),
        "{w}/folder.csv cannot be written",
    ),
    # replay, and as it was called for bags
    *(
        (
            ("-m", "lossattn_jax.mil.replay", *flags),
            "{w}/nowhere is not a dump" if flags[1:] else "--dump",
        )
        for flags in ((), ("--dump=",), ("--dump={w}/nowhere", "--logtostderr"))
    ),
    (REPLAY, "--dump"),
    ((*REPLAY, "--dump="), "--dump is empty, but must have a value"),
    (
        (*REPLAY, "--dump={w}/nowhere"),
        "{w}/nowhere is not a dump of a skipped update: it has no dump.json",
    ),
    ((*REPLAY, "--dump={w}/good.csv"), "{w}/good.csv is not a dump of a skipped update"),
    (
        (*REPLAY, "--dump={w}/cut_dump"),
        "{w}/cut_dump/dump.json cannot be read as a skipped update",
    ),
    ((*REPLAY, "--dump={w}/number_dump"), "{w}/number_dump/dump.json cannot be read"),
    (
        (*REPLAY, "--dump={w}/typed_dump"),
        "{w}/typed_dump/arrays.npz does not hold an update of the network in dump.json: epochs is",
    ),
    ((*REPLAY, "--dump={w}/edited_dump"), "{w}/edited_dump/dump.json is not as it was written"),
    ((*REPLAY, "--dump={w}/strange_dump"), "is 'sounds', but must be one of: images, bags"),
    ((*REPLAY, "--dump={w}/pickled_dump"), "{w}/pickled_dump/arrays.npz cannot be read as arrays"),
    ((*REPLAY, "--dump={w}/evil_dump"), "{w}/evil_dump/arrays.npz cannot be read as arrays"),
    (
        (*REPLAY, "--dump={w}/foreign_dump"),
        "{w}/foreign_dump/arrays.npz does not hold an update of the network in dump.json",
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    bad_input.write_bags(folder)
    bad_input.write_bag_runs(folder)
    return folder


@pytest.mark.parametrize(("arguments", "sentence"), CASES)
def test_wrong_input_is_refused(world, arguments, sentence):
    bad_input.refused(arguments, sentence, world)


@pytest.mark.slow
def test_features_too_large_for_float32_give_a_sentence_and_dump(tmp_path):
    features = [(n % 2, f"b{n}", (-1) ** (n // 2) * 3e38, 3e38) for n in range(8)]
    lines = [",".join(map(str, line)) for line in features]
    (tmp_path / "huge.csv").write_text("\n".join(["bag_label,bag_id,f0,f1", *lines, ""]))
    arguments = [
        *("-m", "lossattn_jax.mil", f"--dataset={tmp_path}/huge.csv", f"--workdir={tmp_path}/run"),
        *("--folds=2", "--repeats=1", "--config.train.epochs=2"),
        *("--config.model.hidden=(32,32,32)", "--config.model.standardise=false"),
        "--config.train.max_skipped=1",
    ]
    finished = in_process.run(arguments, tmp_path)
    bad_input.check(
        finished,
        "huge, Loss-Attention, training: the loss or its gradient was not finite in 1 updates in a row, the "
        "first of model 0 (repeat0_fold0) after ",
    )
    (dump,) = (tmp_path / "run" / "huge" / "loss_attention" / "nonfinite").iterdir()
    assert f"--dump={dump} says what was not finite" in finished.stderr
    replayed = in_process.run([*REPLAY, f"--dump={dump}"], tmp_path)
    assert replayed.returncode == 0 and "The largest feature is 3e+38" in replayed.stdout
