"""What ``hmr-prob bench`` measures: each stage, the posterior over its settings, and what it could cost at best."""

from __future__ import annotations
