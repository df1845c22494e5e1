"""The settings that are in force, and where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from broker.admin.api import ADMIN
from broker.admin.operations import operation
from broker.admin.paging import Text
from broker.admin.questions import question
from broker.config import DEFAULT, SETTINGS

if TYPE_CHECKING:
    from broker.admin.office import Office


class WhichSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of which node (empty: the one that answers); `changed`: only those that are not as by default."""

    node: Annotated[Text, msgspec.Meta(description="Of this node; without it: the one that answers.")] = ""
    changed: Annotated[bool, msgspec.Meta(description="Only those that are not as by default.")] = False


class SettingItem(msgspec.Struct, kw_only=True):
    """A setting. `value` is as one would write it, secrets masked; `origin` where it comes from: `default`, the command
    line, a variable of the environment, or file and line. `reload`: SIGHUP changes it while the node runs."""

    name: str
    value: str
    origin: str
    default: str
    group: str
    help: str
    reload: bool


class EffectiveSettings(msgspec.Struct, kw_only=True):
    """All of a node, in the order of the documentation."""

    node: str
    items: list[SettingItem]


@question("settings.show")
def _show(office: Office, arguments: dict[str, Any]) -> EffectiveSettings:
    origins = office.settings.origins
    items = [
        SettingItem(
            name=setting.name,
            value=setting.show(getattr(office.settings, setting.attribute)),
            origin=origins.get(setting.attribute, DEFAULT),
            default="" if setting.secret else setting.default,
            group=setting.group,
            help=setting.help,
            reload=setting.reload,
        )
        for setting in SETTINGS
        if not arguments["changed"] or origins.get(setting.attribute, DEFAULT) != DEFAULT
    ]
    return EffectiveSettings(node=office.name, items=items)


@operation("settings.show", ADMIN, "GET", "/settings", "Show the settings in force", WhichSettings, EffectiveSettings)
async def show_settings(office: Office, arguments: WhichSettings) -> EffectiveSettings:
    """Settings of a node with their origins."""
    told = await office.at(arguments.node or office.name, "settings.show", {"changed": arguments.changed})
    return msgspec.convert(told, EffectiveSettings)
