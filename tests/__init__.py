"""The tests; a real package, since an installed library brings a `tests` of its own."""

from __future__ import annotations
