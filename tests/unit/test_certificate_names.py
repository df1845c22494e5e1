"""Names from certificates and pre-shared keys."""

from __future__ import annotations

import pytest

from broker.auth.api import ALLOW, DENY, IGNORE, ConnectRequest, Verdict
from broker.auth.certificate import CertificateUsers
from broker.auth.psk import PresharedKeyUsers
from broker.options import read_options
from broker.options.authentication import CertificateNames, PresharedKeys
from broker.peer import Certificate, Peer

GIVEN = Certificate(
    "d1",
    "CN=d1,O=Example",
    (("DNS", "one.example"), ("DNS", "two.example"), ("email", "d1@example"), ("URI", "urn:d1"), ("IP", "10.0.0.1")),
    serial="0a",
    fingerprint="ff" * 32,
    expires_at_s=4e9,
)


async def ask(certificate: Certificate | None = GIVEN, client_id: str = "c1", **options: object) -> Verdict:
    peer = Peer("10.0.0.1", certificate=certificate)
    return await CertificateUsers(read_options(CertificateNames, options)).authenticate(
        ConnectRequest(client_id, "root", b"anything", peer)
    )


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("cn", "d1"),
        ("dn", "CN=d1,O=Example"),
        ("san_dns", "one.example"),
        ("san_email", "d1@example"),
        ("san_uri", "urn:d1"),
        ("fingerprint", "ff" * 32),
        ("serial", "0a"),
    ],
)
async def test_the_user_name_is_in_the_certificate(field: str, name: str) -> None:
    found = await ask(username=field)
    assert (found.decision, found.username, found.client_id, found.expires_at_s) == (ALLOW, name, None, 4e9)


async def test_without_a_certificate_others_decide() -> None:
    assert (await ask(None)).decision == IGNORE


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "x" * 70000])
async def test_a_certificate_without_a_usable_name_is_refused(name: str) -> None:
    assert (await ask(Certificate(name))).decision == DENY
    assert (await ask(Certificate(name), username="san_dns")).decision == DENY


async def test_client_ids() -> None:
    assert (await ask(client_id="c1")).client_id is None
    found = await ask_id("other", "replace")
    assert (found.decision, found.client_id, found.username) == (ALLOW, "one.example", "d1")
    assert (await ask_id("other", "require")).decision == DENY
    for name in ("one.example", "two.example"):
        found = await ask_id(name, "require")
        assert (found.decision, found.client_id) == (ALLOW, None)
    assert (await ask_id("c", "replace", Certificate("d1"))).decision == DENY
    assert (await ask_id("", "require", Certificate("d1"))).decision == DENY


async def ask_id(client_id: str, match: str, certificate: Certificate = GIVEN, username: str = "cn") -> Verdict:
    options = read_options(CertificateNames, {"client_id": "san_dns", "match": match, "username": username})
    request = ConnectRequest(client_id, None, None, Peer("10.0.0.1", certificate=certificate))
    return await CertificateUsers(options).authenticate(request)


async def test_no_name_is_taken_on_trust() -> None:
    assert (await ask_id("c", "replace", username="")).username == "one.example"
    with pytest.raises(ValueError, match="one of them"):
        read_options(CertificateNames, {"username": ""})


async def test_a_pre_shared_key_names_its_user() -> None:
    subject = PresharedKeyUsers(read_options(PresharedKeys, {}))
    found = await subject.authenticate(ConnectRequest("c", "root", None, Peer(psk_identity="sensor")))
    assert (found.decision, found.username) == (ALLOW, "sensor")
    assert (await subject.authenticate(ConnectRequest("c", "root", None, Peer()))).decision == IGNORE
