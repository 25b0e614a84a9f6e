"""OpenID of the tests' Hub: a person who sits at a browser lets a Space know them, and it gets a token of theirs, as far as it asked."""

import base64
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from math import gcd, prod
from typing import Any
from urllib.parse import parse_qs, urlencode

from tests.publish.hub import Answer, Handler, told
from tests.publish.hub_state import Refused

CLIENT, SECRET = "the-space", "the-secret-of-the-space"
EXPONENT = 65537
ASN1 = bytes.fromhex("3031300d060960864801650304020105000420")
"""What says that a SHA-256 follows (RFC 8017, 9.2)."""
SMALL = prod(n for n in range(3, 2000, 2) if all(n % k for k in range(3, n, 2)))


@dataclass
class Desk:
    """Who has logged in at a Hub, and what was asked of them."""

    account: str = ""
    """Who sits at the browser that comes next, and agrees to everything."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """What each `/oauth/authorize` brought along."""
    codes: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """Who agreed to what; each is good for one token."""
    given: dict[str, str] = field(default_factory=dict)
    """Everybody's last token."""

    @cached_property
    def key(self) -> tuple[int, int]:
        """An RSA key of 2048 bits: modulus and private exponent."""
        p, q = _prime(), _prime()
        return p * q, pow(EXPONENT, -1, (p - 1) * (q - 1))

    def signed(self, claims: dict[str, Any]) -> str:
        """A JSON Web Token by RS256 (RFC 7518, 3.3)."""
        head = f"{_text(json.dumps({'alg': 'RS256', 'typ': 'JWT', 'kid': '1'}).encode())}.{_text(json.dumps(claims).encode())}"
        digest = ASN1 + sha256(head.encode()).digest()
        padded = b"\0\1" + b"\xff" * (256 - 3 - len(digest)) + b"\0" + digest
        n, d = self.key
        return f"{head}.{_text(pow(int.from_bytes(padded), d, n).to_bytes(256))}"


def _prime() -> int:
    """One of 1024 bits, by Fermat's test, which a number that is drawn at random does not deceive."""
    while True:
        n = secrets.randbits(1024) | 3 << 1022 | 1
        if gcd(n, SMALL) == 1 and (n - 1) % EXPONENT and pow(2, n - 1, n) == 1:
            return n


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8))


def _desk(handler: Handler) -> Desk:
    assert isinstance(handler.hub.yard, Desk)
    return handler.hub.yard


def _said(query: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query).items()}


def about(url: str, account: str) -> dict[str, str]:
    """What the Hub tells of an account to whoever may know its profile."""
    return {"sub": f"id-of-{account}", "name": account.title(), "preferred_username": account, "profile": f"{url}/{account}", "picture": f"{url}/{account}.png"}


def configuration(handler: Handler) -> Answer:
    url = handler.hub.url
    return told(
        {
            "issuer": url,
            "authorization_endpoint": f"{url}/oauth/authorize",
            "token_endpoint": f"{url}/oauth/token",
            "userinfo_endpoint": f"{url}/oauth/userinfo",
            "jwks_uri": f"{url}/oauth/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        }
    )


def keys(handler: Handler) -> Answer:
    n, _ = _desk(handler).key
    return told({"keys": [{"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig", "n": _number(n), "e": _number(EXPONENT)}]})


def authorize(handler: Handler) -> Answer:
    desk, asked = _desk(handler), _said(handler.query)
    if asked.get("client_id") != CLIENT or asked.get("response_type") != "code":
        raise Refused(400, "Unknown client, or no code is asked for", {})
    desk.asked.append(asked)
    code = secrets.token_urlsafe(16)
    desk.codes[code] = (desk.account, asked)
    back = asked["redirect_uri"]
    return 302, b"", {"Location": f"{back}{'&' if '?' in back else '?'}{urlencode({'code': code, 'state': asked['state']})}"}


def token(handler: Handler) -> Answer:
    desk, sent = _desk(handler), _said(handler.body.decode())
    basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
    if handler.headers.get("Authorization") != f"Basic {basic}":
        raise Refused(401, "The Space does not know its own secret", {})
    account, asked = desk.codes.pop(sent["code"], ("", {}))
    if not account or sent["redirect_uri"] != asked["redirect_uri"]:
        raise Refused(400, "This code was not given out for that address", {})
    made, now, url = f"hf_oauth_{secrets.token_hex(17)}", int(time.time()), handler.hub.url
    handler.hub.tokens[made], desk.given[account] = account, made
    claims = {**about(url, account), "iss": url, "aud": CLIENT, "iat": now, "exp": now + 600, "auth_time": now, "nonce": asked.get("nonce", "")}
    return told({"access_token": made, "token_type": "bearer", "expires_in": 28800, "scope": asked["scope"], "id_token": desk.signed(claims)})


def userinfo(handler: Handler) -> Answer:
    return told(about(handler.hub.url, handler.known()))


ROUTES: dict[str, Callable[[Handler], Answer]] = {
    r"GET /\.well-known/openid-configuration": configuration,
    r"GET /oauth/jwks": keys,
    r"GET /oauth/authorize": authorize,
    r"POST /oauth/token": token,
    r"GET /oauth/userinfo": userinfo,
}
