"""Ways to become an identity: one class of options per authenticator, and client attributes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from broker.options import Words, option
from broker.options.backends import Named, Remote
from broker.options.web import HeaderLines
from broker.values import Choice, Duration, FilePath, Flag, Integer, Text, Url

#: Where the name or the client id can be taken from.
CERTIFICATE_FIELDS = ("cn", "dn", "san_dns", "san_email", "san_uri", "fingerprint", "serial")

# fmt: off


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordFile(Named):
    """Users of a file."""

    TYPE: ClassVar[str] = "password_file"
    HELP: ClassVar[str] = ("Users of a file, USER:HASH in each line, as mosquitto_passwd and `rookery passwd` write "
        "it; also serves SCRAM for users whose line has a SCRAM verifier.")

    path: Path = option(FilePath(), None, "The file; it is read again when it changes.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUsers(Named):
    """Users kept in the cluster's own store."""

    TYPE: ClassVar[str] = "store"
    HELP: ClassVar[str] = "Users in the cluster's store, managed with `rookery ctl users`; also serves SCRAM."


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUsers(Remote):
    """Users in a Redis database of somebody else's making."""

    TYPE: ClassVar[str] = "redis"
    HELP: ClassVar[str] = ("Users in any Redis or Valkey: a hash each with password_hash, maybe salt, is_superuser; "
        "also serves SCRAM if it has scram_sha_256 or scram_sha_512.")

    url: str = option(Url(), None, "redis://HOST:PORT/DB, or any other form that the setting store takes.")
    username: str = option(Text(), "", "User name for that Redis.")
    password: str = option(Text(), "", "Password for that Redis.", secret=True)
    key: str = option(Text(), "mqtt_user:${username}", "Key of the hash of a user.")
    algorithm: str = option(Choice("auto", "plain", "md5", "sha1", "sha256", "sha512", "bcrypt", "pbkdf2_sha256",
        "pbkdf2_sha512", "argon2"), "auto", "How password_hash was made; auto: as its prefix says.")
    salt: str = option(Choice("prefix", "suffix", "none"), "prefix", "Where the salt of a plain digest stands.")
    iterations: int = option(Integer(), "0", "For pbkdf2 hashes that do not tell it.", at_least=0, at_most=10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateNames(Named):
    """X.509."""

    TYPE: ClassVar[str] = "certificate"
    HELP: ClassVar[str] = "Clients with a verified certificate, whose name comes from it; no password is needed."

    username: str = option(Choice("", *CERTIFICATE_FIELDS), "cn",
        "What of the certificate is the user name; empty: the same as client_id.")
    client_id: str = option(Choice("", *CERTIFICATE_FIELDS), "", "What of it has to be (or replaces) the client id.")
    match: str = option(Choice("replace", "require"), "replace",
        "Whether the client id of the certificate replaces that in CONNECT, or has to be the same.")

    def check(self) -> None:
        if not self.username and not self.client_id:
            raise ValueError("username and client_id: one of them has to be taken from the certificate")


@dataclass(frozen=True, slots=True, kw_only=True)
class PresharedKeys(Named):
    """TLS-PSK."""

    TYPE: ClassVar[str] = "psk"
    HELP: ClassVar[str] = "Clients whose TLS connection used a pre-shared key: its identity is the user name."


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwt(Remote):
    """JSON web tokens."""

    TYPE: ClassVar[str] = "jwt"
    HELP: ClassVar[str] = "JSON web tokens, in the password or the user name."

    algorithms: tuple[str, ...] = option(Words("algorithms", r"(HS|RS|ES|PS)(256|384|512)|EdDSA"), "",
        "Algorithms accepted; by default HS256 to HS512 with a secret, else RS, PS, ES and EdDSA.")
    secret: str = option(Text(), "", "Key of HMAC algorithms; base64:TEXT for one in base64.", secret=True)
    secret_file: Path | None = option(FilePath(), "", "File with it.")
    public_key: Path | None = option(FilePath(), "", "PEM file with a public key.")
    jwks_url: str = option(Url(), "", "URL of a JSON web key set.")
    ca_certs: Path | None = option(FilePath(), "", "PEM file of the authorities that sign the certificate of jwks_url.")
    refresh_s: float = option(Duration(), "300s", "How often the key set is fetched again.", at_least=1, at_most=86400)
    source: str = option(Choice("password", "username"), "password", "Where the token is.")
    username_claim: str = option(Text(), "sub", "Claim that is the user name; empty: the user name of CONNECT.")
    issuer: str = option(Text(), "", "Required iss.")
    audience: str = option(Text(), "", "Required aud.")
    claims: tuple[str, ...] = option(Words("CLAIM=VALUE", r"[^=\s,]+=[^\s,]+"), "",
        "Claims that a token must have, or have among others in a list; realm.roles is a claim within another; values "
        "may contain ${username} and ${clientid}.")
    leeway_s: float = option(Duration(), "0s", "How far clocks may differ.", at_least=0, at_most=300)
    require_expiry: bool = option(Flag(), "true", "Refuse tokens without exp.")
    acl_claim: str = option(Text(), "acl", "Claim with rules; empty: none is looked at.")
    superuser_claim: str = option(Text(), "", "Claim that makes a superuser when true; empty: none.")
    attributes_claim: str = option(Text(), "client_attrs", "Claim with client attributes; empty: none is looked at.")

    def check(self) -> None:
        if self.source == "username" and not self.username_claim:
            raise ValueError("username_claim is missing: the user name of CONNECT is the token")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAuthentication(Remote):
    """A web service."""

    TYPE: ClassVar[str] = "http"
    HELP: ClassVar[str] = ("A web service: answers 200 with JSON {result: allow|deny|ignore, is_superuser, "
        "client_attrs, expire_at, acl, username, clientid}, 204 for allow, 401 or 403 for deny.")

    url: str = option(Url(), None, "URL; may contain placeholders in its path and query.")
    method: str = option(Choice("post", "get"), "post", "POST with a JSON body, or GET with a query.")
    body: str = option(Text(), "username=${username}&password=${password}&clientid=${clientid}&ip=${ip}",
        "Names and values of the body or query; values may contain placeholders.", secret=True)
    headers: tuple[str, ...] = option(HeaderLines(), "",
        "Further request headers; values may contain placeholders.", secret=True)
    ca_certs: Path | None = option(FilePath(), "", "PEM file of the authorities that sign the service's certificate.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sql(Remote):
    """What PostgreSQL and MySQL have in common."""

    url: str = option(Url(), None, "postgresql://HOST:PORT/DATABASE or mysql://HOST:PORT/DATABASE.")
    username: str = option(Text(), "", "User name for the database.")
    password: str = option(Text(), "", "Password for the database.", secret=True)
    algorithm: str = option(Choice("auto", "plain", "md5", "sha1", "sha256", "sha512", "bcrypt", "pbkdf2_sha256",
        "pbkdf2_sha512", "argon2"), "auto", "How password_hash was made; auto: as its prefix says.")
    salt: str = option(Choice("prefix", "suffix", "none"), "prefix", "Where the salt of a plain digest stands.")
    query: str = option(Text(), "SELECT username, password_hash, salt, is_superuser FROM mqtt_user WHERE username = "
        "${username}", "Query for one user; placeholders become parameters. Only the column password_hash has to be "
        "there, in MySQL also username: it finds ann for ANN, and who comes in is the user as it is spelled there.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresqlUsers(Sql):
    """Users in PostgreSQL."""

    TYPE: ClassVar[str] = "postgresql"
    HELP: ClassVar[str] = "Users found by a query in PostgreSQL; also serves SCRAM if password_hash is a verifier."


@dataclass(frozen=True, slots=True, kw_only=True)
class MysqlUsers(Sql):
    """Users in MySQL or MariaDB."""

    TYPE: ClassVar[str] = "mysql"
    HELP: ClassVar[str] = "Users found by a query in MySQL or MariaDB."


@dataclass(frozen=True, slots=True, kw_only=True)
class Ldap(Remote):
    """LDAP."""

    TYPE: ClassVar[str] = "ldap"
    HELP: ClassVar[str] = "A bind as the user; with a search for the entry first, if base is given."

    url: str = option(Url(), None, "ldap://HOST:PORT or ldaps://HOST:PORT.")
    start_tls: bool = option(Flag(), "false", "Use STARTTLS on ldap://.")
    ca_certs: Path | None = option(FilePath(), "", "PEM file of the authorities that signed the server's.")
    bind_dn: str = option(Text(), "", "Entry to bind as: the user (with ${username}), or who searches, with base.")
    bind_password: str = option(Text(), "", "Password of who searches.", secret=True)
    base: str = option(Text(), "", "Where users are searched for.")
    filter: str = option(Text(), "(uid=${username})", "Filter of the search; values are escaped.")
    superuser_attribute: str = option(Text(), "", "Attribute that makes a superuser when TRUE.")
    username_attribute: str = option(Text(), "uid", "Attribute with the user name as it is spelled there: servers "
        "compare without case. Empty: it is taken as the client spells it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAttribute(Named):
    """A client attribute."""

    TYPE: ClassVar[str] = "attribute"
    HELP: ClassVar[str] = "A client attribute (${client_attrs.NAME}), made when a client connects."

    value: str = option(Text(), None, "Text with placeholders, such as ${username}, ${clientid}, ${cert_common_name}.")
    match: str = option(Text(), "", "Regular expression whose first group is the attribute; no match: it is not set.")

    def check(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise ValueError(f"name = {self.name!r}: must be a letter followed by letters, digits or _")
        try:
            groups = re.compile(self.match).groups
        except re.error as error:
            raise ValueError(f"match = {self.match!r:.60}: {error}") from None
        if self.match and groups < 1:
            raise ValueError(f"match = {self.match!r:.60}: has no group")


AUTHENTICATORS = (
    PasswordFile, StoredUsers, RedisUsers, CertificateNames, PresharedKeys, Jwt, HttpAuthentication, PostgresqlUsers,
    MysqlUsers, Ldap,
)
