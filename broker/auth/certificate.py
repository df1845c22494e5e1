"""Clients who are known by their certificate, which the transport has verified."""

from __future__ import annotations

from broker.auth.api import ALLOW, DENIED, IGNORED, ConnectRequest, Principal, Verdict
from broker.auth.base import BaseAuthenticator
from broker.options.authentication import CertificateNames
from broker.peer import Certificate

_KINDS = {"san_dns": "DNS", "san_email": "email", "san_uri": "URI"}

#: What MQTT can carry as a name.
_NAME_BYTES = 65535


class CertificateUsers(BaseAuthenticator):
    """Implements `Authenticator`: the user name and maybe the client id come from the certificate, never from CONNECT.

    Without a certificate it is for others to decide; one that lacks what is asked of it is refused. A connection
    ends when its certificate expires.
    """

    def __init__(self, options: CertificateNames) -> None:
        super().__init__(options.label)
        # A certificate that only fixes the client id names its user by that too: no name is taken on trust.
        self._username = options.username or options.client_id
        self._client_id = options.client_id
        self._replace = options.match == "replace"

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        certificate = request.peer.certificate
        if certificate is None:
            return IGNORED
        names = values_of(certificate, self._username)
        client_id: str | None = None
        if self._client_id:
            known = values_of(certificate, self._client_id)
            if not self._replace and request.client_id not in known:
                return DENIED
            client_id = known[0] if self._replace and known else None
            if not known:
                return DENIED
        if not names:
            return DENIED
        return Verdict(
            ALLOW,
            names[0],
            client_id=client_id,
            expires_at_s=certificate.expires_at_s or None,
            credential=certificate.fingerprint.encode(),
        )

    async def still_valid(self, principal: Principal) -> bool:
        """See `Authenticator`: a certificate is checked when the connection begins."""
        return principal.peer.certificate is not None


def values_of(certificate: Certificate, field: str) -> list[str]:
    """What a certificate has of a field of `CERTIFICATE_FIELDS`, without what can be no name in MQTT."""
    match field:
        case "cn":
            found = [certificate.common_name]
        case "dn":
            found = [certificate.subject]
        case "fingerprint":
            found = [certificate.fingerprint]
        case "serial":
            found = [certificate.serial]
        case _:
            found = [value for kind, value in certificate.alternative_names if kind == _KINDS[field]]
    return [value for value in found if value and value.isprintable() and len(value.encode()) <= _NAME_BYTES]
