"""Whose code a frame is, by where its file lies."""

from __future__ import annotations

import functools
import json.decoder
import sysconfig

import pytest
import structlog

from loopguard.explain.ownership import Ownership
from tests.evidence import frame

pytestmark = pytest.mark.core

SITE = "/srv/app/.venv/lib/python3.12/site-packages"
STDLIB = sysconfig.get_path("stdlib")


@pytest.mark.parametrize(
    "module, file",
    [
        ("app.users", "/srv/app/users.py"),
        ("__main__", "/srv/app/main.py"),
        ("__main__", "<stdin>"),
        ("users", "relative/users.py"),
        ("lib.python3", "/srv/lib/python3.12/not-the-standard-library.py"),
    ],
)
def test_code_outside_of_all_libraries_is_the_users_own(module: str, file: str) -> None:
    assert not Ownership().library(frame("f", module, file))


@pytest.mark.parametrize(
    "module, file",
    [
        ("json.decoder", json.decoder.__file__),
        ("functools", functools.__file__),
        ("structlog", structlog.__file__),
        ("requests.api", f"{SITE}/requests/api.py"),
        ("apt", "/usr/lib/python3/dist-packages/apt/cache.py"),
        ("importlib._bootstrap", "<frozen importlib._bootstrap>"),
        ("app.models", "<string>"),
        ("app.models", "<attrs generated init app.models.User>"),
    ],
)
def test_the_standard_library_packages_and_generated_code_are_not(module: str, file: str) -> None:
    assert Ownership().library(frame("f", module, file))


def test_a_virtual_environment_inside_the_project_is_not_the_users_own() -> None:
    assert Ownership().library(frame("f", "sqlalchemy.orm", f"{SITE}/sqlalchemy/orm/query.py"))


def test_an_app_that_is_installed_in_site_packages_is_the_users_own_when_it_is_named() -> None:
    installed = frame("f", "shop.api.users", f"{SITE}/shop/api/users.py")
    assert Ownership().library(installed)
    assert not Ownership(["shop"]).library(installed)


def test_naming_one_package_leaves_its_neighbours_libraries() -> None:
    ownership = Ownership(["shop"])
    assert ownership.library(frame("f", "shopify", f"{SITE}/shopify/api.py"))
    assert ownership.library(frame("f", "json", json.__file__))


def test_a_module_of_the_standard_library_can_be_named_too() -> None:
    assert not Ownership(["json"]).library(frame("f", "json", f"{STDLIB}/json/__init__.py"))


@pytest.mark.parametrize("module", ["uvicorn.server", "starlette.routing", "fastapi.routing"])
def test_plumbing_is_never_the_users_own_wherever_it_lies(module: str) -> None:
    """An editable install has its files outside of site-packages."""
    server = frame("f", module, f"/home/dev/{module.replace('.', '/')}.py")
    assert Ownership().library(server)
    assert Ownership().plumbing(server)


def test_plumbing_that_is_named_as_the_users_own_is() -> None:
    """Somebody develops uvicorn."""
    server = frame("f", "uvicorn.server", "/home/dev/uvicorn/server.py")
    assert not Ownership(["uvicorn"]).library(server)
    assert not Ownership(["uvicorn"]).plumbing(server)


def test_a_library_that_does_work_is_no_plumbing() -> None:
    assert not Ownership().plumbing(frame("f", "requests.api", f"{SITE}/requests/api.py"))


def test_loopguard_is_never_the_users_own() -> None:
    assert Ownership(["loopguard"]).library(frame("f", "loopguard.guard", "/srv/x/guard.py"))


def test_a_frame_without_a_module_goes_by_its_file() -> None:
    nameless = frame("f", "x", f"{SITE}/x.py")._replace(module=None)
    assert Ownership().library(nameless)
    assert not Ownership().library(frame("f", "x", "/srv/app/x.py")._replace(module=None))
