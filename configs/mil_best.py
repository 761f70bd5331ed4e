"""Loss attention on the five benchmarks, with what raises its honest accuracy: no step sees a test fold.

AAAI 2020, Table 1, loss attention: MUSK1 .917, MUSK2 .911, FOX .712, TIGER .897, ELEPHANT .900, figures of a
best epoch on the test fold. The steps can be had one by one, as the argument of the config:

    python -m lossattn_jax.mil --config=configs/mil_best.py:average --dataset=musk1 ... --select=final
    python -m lossattn_jax.mil --config=configs/mil_best.py:average+consistency ...
    python -m lossattn_jax.mil --config=configs/mil_best.py --dataset=musk1,fox,tiger,elephant,musk2 \
        --data_dir=DIR --select=final,validation --workdir=runs/mil_best      # average+ensemble

  average: predict with the mean of the parameters after each of the last 50 epochs.
  ensemble: of three networks from different seeds, probabilities are averaged.
  consistency: attention is kept near its average over the epochs.
  --select=validation: lambda, learning rate and epoch of each fold chosen on a fifth of its training bags.

Expected, and the gain of each step: results/mil/README.md; no step reaches the paper's figures.
Time: on one core of an AMD EPYC, `average` took 1 minute for MUSK1 and 2.3 for each Corel set (5 x 10 folds).
"""

from ml_collections import ConfigDict

from lossattn_jax.config.bags import default_config
from lossattn_jax.errors import UserError

STEPS = ("average", "ensemble", "consistency")


def get_config(steps: str = "average+ensemble") -> ConfigDict:
    """`steps` are some of `STEPS`, joined by "+"."""
    chosen = steps.split("+")
    for step in chosen:
        if step not in STEPS:
            raise UserError(
                f"the config's argument has {step!r}, but must be some of {', '.join(STEPS)}, joined by +"
            )
    config = default_config()
    if "average" in chosen:
        config.train.average_epochs = config.train.epochs // 2
    if "ensemble" in chosen:
        config.model.ensemble = 3
    if "consistency" in chosen:
        config.loss.consistency_weight = 10.0
        config.loss.consistency_ramp_epochs = 20
    config.validation.patch_weight = (0.0, 1.0)
    config.validation.learning_rate = (3e-5,)
    return config
