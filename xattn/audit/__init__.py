"""What a network relies on over a whole data set: evidence, groups of it, tests, findings.

`audit` gathers the evidence of every image in one pass (`gather`, kept by `evidence`), finds groups of it on one half
of the images (`group`), tests them on the other (`effect`, `sign`) and says what came out (`finding`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "audit": "xattn.audit.auditing",
    "Audit": "xattn.audit.finding",
    "AuditSettings": "xattn.audit.settings",
    "Effect": "xattn.audit.effect",
    "Finding": "xattn.audit.finding",
    "Group": "xattn.audit.group",
    "Member": "xattn.audit.group",
    "Search": "xattn.audit.searching",
    "search": "xattn.audit.searching",
    "Sign": "xattn.audit.sign",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from xattn.audit.auditing import audit as audit
    from xattn.audit.effect import Effect as Effect
    from xattn.audit.finding import Audit as Audit
    from xattn.audit.finding import Finding as Finding
    from xattn.audit.group import Group as Group
    from xattn.audit.group import Member as Member
    from xattn.audit.searching import Search as Search
    from xattn.audit.searching import search as search
    from xattn.audit.settings import AuditSettings as AuditSettings
    from xattn.audit.sign import Sign as Sign


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'xattn.audit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
