"""The templates of pages: what they are given is escaped, and unknown names are refused."""

import base64
import functools
import pathlib

import jinja2


@functools.cache
def environment() -> jinja2.Environment:
    """Makes templates of this folder, with a filter `uri` for PNG."""
    own = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own.filters["uri"] = uri
    own.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return own


def uri(png: bytes) -> str:
    """A picture within a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
