"""core/target.py: one target per origin, account and model, with a name that tells no secret."""

import threading

import pytest

from deepseek_resilient.core import target as module
from deepseek_resilient.core.target import ServedModel, Target, Targets


def targets():
    return Targets(lambda name, most: Target(name, object(), None, ServedModel()), threading.RLock())


def test_the_same_address_account_and_model_is_the_same_target():
    """State is shared by the calls that share a limit, and by no others."""
    table = targets()
    first = table.get("https://a", 1, "m")
    assert first is table.get("https://a", 1, "m")
    others = [table.get("https://b", 1, "m"), table.get("https://a", 2, "m"), table.get("https://a", 1, "n")]
    assert 4 == len({id(target) for target in [first, *others]})
    assert [first, *others] == table.all()
    assert [others[2]] == table.all("n")


@pytest.mark.parametrize(
    ("origin", "model", "name"),
    [
        ("https://api.deepseek.com", "deepseek-flash", "api.deepseek.com/deepseek-flash"),
        ("https://api.deepseek.com", "", "api.deepseek.com"),
        ("http://127.0.0.1:80", "m", "127.0.0.1:80/m"),
        ("unix", "m", "unix/m"),
    ],
)
def test_a_name_is_host_and_model(origin, model, name):
    """The first account has no number."""
    assert name == targets().get(origin, 0, model).name


def test_accounts_are_numbered_in_the_order_they_come():
    """A later account shows as #2, #3, on every model, and never as its hash."""
    table = targets()
    names = [table.get("https://a", account, model).name for account in (777, 888, 999) for model in ("m", "n")]
    assert ["a/m", "a/n", "a/m#2", "a/n#2", "a/m#3", "a/n#3"] == names


def test_the_table_is_bounded(monkeypatch):
    """Invented models push out what was not used for longest, not what is in use."""
    monkeypatch.setattr(module, "MAX_TARGETS", 3)
    table = targets()
    kept = table.get("https://a", 0, "kept")
    for number in range(50):
        table.get("https://a", 0, f"invented {number}")
        assert kept is table.get("https://a", 0, "kept")
    assert 3 == len(table.all())


def test_the_accounts_are_bounded(monkeypatch):
    """A forgotten account that comes back gets a new number; numbers are never given twice."""
    monkeypatch.setattr(module, "MAX_ACCOUNTS", 2)
    table = targets()
    names = [table.get("https://a", account, str(step)).name for step, account in enumerate((1, 2, 3, 1))]
    assert ["a/0", "a/1#2", "a/2#3", "a/3#4"] == names


def test_a_change_of_the_served_model_is_seen_once():
    """The first name is no change, and neither is the same name again."""
    served = ServedModel()
    assert ["", "", "a", "", "b"] == [served.change(name) for name in ("a", "a", "b", "b", "c")]
    assert "c" == served.name
