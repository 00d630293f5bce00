"""What clients changed at run time (spec api §3.3)."""

import pytest

from nydusd.config.model import Secret
from nydusd.daemon.settings import Settings
from nydusd.errors import ConfigError


def test_what_was_put_is_shown_by_id_and_for_all() -> None:
    settings = Settings()
    settings.put("/a", {"registry_auth": "eDp5"})
    settings.put("/b", {"registry_auth": ""})
    assert settings.view("/a") == {"registry_auth": "eDp5"}
    assert settings.view("/c") == {}
    assert settings.view(None) == {"/a:registry_auth": "eDp5", "/b:registry_auth": ""}


def test_an_unknown_key_changes_nothing() -> None:
    settings = Settings()
    with pytest.raises(ConfigError, match="nope"):
        settings.put("/a", {"registry_auth": "eDp5", "nope": "x"})
    assert settings.view(None) == {}


def test_a_setting_without_effect_is_confessed(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings()
    settings.put("/a", {"proxy_url": "http://user:secret@proxy"})
    assert settings.view("/a") == {"proxy_url": "http://user:secret@proxy"}
    assert "proxy_url" in caplog.text
    assert "secret" not in caplog.text


def test_a_credential_never_put_differs_from_an_empty_one() -> None:
    settings = Settings()
    assert settings.registry_auth("/a") is None
    settings.put("/a", {"registry_auth": ""})
    assert settings.registry_auth("/a") == Secret("")
