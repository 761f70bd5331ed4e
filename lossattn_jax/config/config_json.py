"""The config that a workdir stores, under today's names of keys."""

import json
import logging
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from lossattn_jax import files
from lossattn_jax.config import former_keys, images
from lossattn_jax.config.options import leaves, to_config
from lossattn_jax.config.schema import Schema
from lossattn_jax.errors import UntrustedCode, UserError
from lossattn_jax.files import digests, records
from lossattn_jax.registry import references, refuse_untrusted

log = logging.getLogger(__name__)

# Keys whose values are no names of parts, and may look like `package.module:attribute`.
_NO_PARTS = ("init_from", "profile", "data.dir", "model.pretrained")

_REMEDY = "bring the file back, or use another workdir"


class DamagedConfig(UserError):
    """A config's file is damaged or cannot be read."""


def write(options: Any, path: pathlib.Path) -> None:
    """Writes options or a config as JSON, for `read`.

    An existing file is replaced whole.

    Beside these it has `records.DIGEST`, of all the rest.
    """
    config = options if isinstance(options, ConfigDict) else to_config(options)
    content = json.loads(json.dumps(config.to_dict()))
    content[records.DIGEST] = digests.of_json(content)
    files.write(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def read(
    path: pathlib.Path,
    schema: Schema = images.SCHEMA,
    *,
    trust_code: bool | Collection[str] = False,
) -> ConfigDict:
    """Reads what `write` wrote, now or in the release before.

    Keys that came later than the file have their defaults, and renamed ones their names of today.

    Of a file without a digest, from before there were any, a warning tells.

    Args:
      path: the file.
      schema: of the configuration.
      trust_code: as `registry.refuse_untrusted` takes it; what is refused is not imported.

    Raises:
      UntrustedCode: it names code by reference that is not trusted.
      DamagedConfig: the file cannot be read, or is not as it was written.
      UserError: there is no such file, or it is not a config.
    """
    entries, digest = _load(path)
    if digest is None:
        log.warning("warning: %s was written before configs carried digests", path)
    return from_values(dict(entries), path, schema, trust_code=trust_code)


def from_values(
    values: Mapping[str, Any],
    where: object,
    schema: Schema = images.SCHEMA,
    *,
    trust_code: bool | Collection[str] = False,
) -> ConfigDict:
    """A config of stored values.

    Args:
      values: by dotted keys, as JSON has them; see `read` for missing and renamed keys.
      where: what messages call the place that they were stored in.
      schema: of the configuration.
      trust_code: as of `read`.

    Raises:
      UntrustedCode: they name code by reference that is not trusted.
      UserError: they are not a config.
    """
    refuse_untrusted(_parts(values.items()), where, trust_code)
    config = schema.config()
    for key, value in former_keys.in_values(dict(values), schema.former_names).items():
        section, _, name = key.rpartition(".")
        parent = config.get(section) if section else config
        if not isinstance(parent, ConfigDict) or name not in parent:
            raise UserError(f"{where} has the key {key}, which this version does not know")
        try:
            parent[name] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise UserError(f"{where} has a wrong value of {key}: {error}") from None
    try:
        schema.check(config)
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError) as error:  # of values of other types
        raise UserError(f"{where} has a value that its key cannot have: {error}") from None
    return config


def named_code(options: Any) -> frozenset[str]:
    """The references to a user's own code in options."""
    return frozenset(reference for _, reference in references(_parts(leaves(options))))


def _parts(entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields `config.KEY` and value of the keys that may name a part."""
    return ((f"config.{key}", value) for key, value in entries if key not in _NO_PARTS)


def other_code(error: UntrustedCode, options: Any, folder: pathlib.Path) -> UserError:
    """Describes in a sentence a run that names other code.

    Other than the options that are to continue it.
    """
    key = error.key.removeprefix("config.")
    own = dict(leaves(options)).get(key)
    return UserError(
        f"config.{key} is {own!r}, but the run in {folder} has {error.value!r}; use another workdir"
    )


def read_digest(path: pathlib.Path) -> str | None:
    """Reads the digest of a config's file; None without one.

    Raises:
      DamagedConfig, UserError: as of `read`, but for values.
    """
    return _load(path)[1]


def _load(path: pathlib.Path) -> tuple[list[tuple[str, Any]], str | None]:
    """Reads keys, values and digest of a config's file.

    Raises:
      DamagedConfig, UserError: as of `read`, but for values.
    """
    try:
        record = json.loads(files.read(path))
        digest = record.pop(records.DIGEST, None) if isinstance(record, dict) else None
        entries = list(leaves(ConfigDict(record))) if isinstance(record, dict) else None
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a workdir of a run: it has no {path.name}; name the --workdir that a "
            "training wrote"
        ) from None
    # The last one for what is nested too deeply.
    except (OSError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in files.LACKS:
            raise  # no sign of damage
        reason = getattr(error, "strerror", None) or error
        raise DamagedConfig(f"{path} cannot be read as a config ({reason}); {_REMEDY}") from None
    if entries is None:
        raise DamagedConfig(f"{path} cannot be read as a config (it holds no keys); {_REMEDY}")
    if digest is not None and digest != digests.of_json(record):
        raise DamagedConfig(f"{path} is not as it was written; {_REMEDY}")
    return entries, digest
