"""Pages that are one file and need no network: templates filled in, and a policy that lets nothing else run.

What a page shows comes from files that others made, so two walls stand against it: the template escapes every value,
and the page's own Content-Security-Policy forbids all that is not this page's style and script, named by their
sha256, or a picture inside the page. A hash and not a nonce, so that the same input gives the same bytes.
"""

import base64
import hashlib
import re
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

_POLICY_MARK = "policy-of-this-page"
_MINUS = re.compile(r"(?<![\w.-])-(?=[0-9])")
_CODE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def render_page(template: str, **values: object) -> str:
    """The text of one self-contained HTML page.

    `template` is the name of a file in `templates`; it extends `page.html` and writes its style and script as
    bare `<style>` and `<script>` elements. Every value is escaped where it is put in.
    """
    environment = Environment(autoescape=True, loader=FunctionLoader(_source), undefined=StrictUndefined)
    environment.filters["typeset"] = typeset
    page = environment.get_template(template).render(policy=_POLICY_MARK, **values)
    return page.replace(_POLICY_MARK, _policy(page), 1)


def typeset(text: str) -> str:
    """A text as it is set on a page: a minus before a number and no hyphen, no line's end between it and its %."""
    return _MINUS.sub("\N{MINUS SIGN}", text).replace(" %", "\N{NO-BREAK SPACE}%")


def data_url(content: bytes, kind: str) -> str:
    """A picture as an address that holds it; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _policy(page: str) -> str:
    """Nothing may load or run but pictures in the page and the page's own code, by hash."""
    sources: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _CODE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources[kind].append(f"'sha256-{digest}'")
    code = "; ".join(f"{kind}-src {' '.join(hashes) or chr(39) + 'none' + chr(39)}" for kind, hashes in sources.items())
    return (
        f"default-src 'none'; img-src data:; {code}; base-uri 'none'; form-action 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _source(name: str) -> str:
    return (files("dlth.pipeline.pages") / "templates" / name).read_text("utf-8")
