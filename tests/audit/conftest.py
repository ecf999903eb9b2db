"""One audit of the known network, for the tests that read it."""

from __future__ import annotations

import pytest

from tests.audit.synthetic import Pictures, build, pictures
from xattn.audit import Audit, AuditSettings, audit


@pytest.fixture(scope="session")
def planted() -> Pictures:
    return pictures(100, share=0.5)


@pytest.fixture(scope="session")
def found(planted: Pictures) -> Audit:
    return audit(build(), planted, settings=AuditSettings(score="logit", parts=3, area=0.2))
