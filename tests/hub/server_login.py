"""OpenID of the tests' Hub.

A person at a browser lets a Space know them, and the Space gets a token of theirs with the scopes
that it requested.
"""

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

from tests.hub.server import Answer, Handler, answer_json
from tests.hub.server_state import HubError

CLIENT_ID, CLIENT_SECRET = "the-space", "the-secret-of-the-space"
RSA_EXPONENT = 65537
SHA256_DER_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")
"""The DER prefix that says that a SHA-256 follows (RFC 8017, 9.2)."""
SMALL_PRIMES_PRODUCT = prod(n for n in range(3, 2000, 2) if all(n % k for k in range(3, n, 2)))


@dataclass
class LoginService:
    """Who has logged in at a Hub, and what was requested of them."""

    account: str = ""
    """The account at the browser that comes next, which agrees to everything."""
    authorizations: list[dict[str, str]] = field(default_factory=list)
    """The parameters of each call of `/oauth/authorize`."""
    codes: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """Who agreed to what, by code; each code is good for one token."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Each account's last token."""

    @cached_property
    def key(self) -> tuple[int, int]:
        """An RSA key of 2048 bits: modulus and private exponent."""
        p, q = _draw_prime(), _draw_prime()
        return p * q, pow(RSA_EXPONENT, -1, (p - 1) * (q - 1))

    def sign_token(self, claims: dict[str, Any]) -> str:
        """Return the claims as a JSON Web Token by RS256 (RFC 7518, 3.3)."""
        head = (
            f"{_encode_base64(json.dumps({'alg': 'RS256', 'typ': 'JWT', 'kid': '1'}).encode())}"
            f".{_encode_base64(json.dumps(claims).encode())}"
        )
        digest = SHA256_DER_PREFIX + sha256(head.encode()).digest()
        padded = b"\0\1" + b"\xff" * (256 - 3 - len(digest)) + b"\0" + digest
        n, d = self.key
        return f"{head}.{_encode_base64(pow(int.from_bytes(padded), d, n).to_bytes(256))}"


def _draw_prime() -> int:
    """Return a random prime of 1024 bits, by Fermat's test; random numbers do not deceive it."""
    while True:
        n = secrets.randbits(1024) | 3 << 1022 | 1
        if gcd(n, SMALL_PRIMES_PRODUCT) == 1 and (n - 1) % RSA_EXPONENT and pow(2, n - 1, n) == 1:
            return n


def _encode_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encode_number(value: int) -> str:
    return _encode_base64(value.to_bytes((value.bit_length() + 7) // 8))


def _get_login_service(handler: Handler) -> LoginService:
    assert isinstance(handler.hub.service, LoginService)
    return handler.hub.service


def _parse_query(query: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query).items()}


def describe_account(url: str, account: str) -> dict[str, str]:
    """Describe an account as the Hub does to those who may know its profile."""
    return {
        "sub": f"id-of-{account}",
        "name": account.title(),
        "preferred_username": account,
        "profile": f"{url}/{account}",
        "picture": f"{url}/{account}.png",
    }


def get_configuration(handler: Handler) -> Answer:
    url = handler.hub.url
    return answer_json(
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


def list_keys(handler: Handler) -> Answer:
    n, _ = _get_login_service(handler).key
    return answer_json(
        {
            "keys": [
                {
                    "kty": "RSA",
                    "kid": "1",
                    "alg": "RS256",
                    "use": "sig",
                    "n": _encode_number(n),
                    "e": _encode_number(RSA_EXPONENT),
                }
            ]
        }
    )


def authorize(handler: Handler) -> Answer:
    desk, asked = _get_login_service(handler), _parse_query(handler.query)
    if asked.get("client_id") != CLIENT_ID or asked.get("response_type") != "code":
        raise HubError(400, "Unknown client, or no code is asked for", {})
    desk.authorizations.append(asked)
    code = secrets.token_urlsafe(16)
    desk.codes[code] = (desk.account, asked)
    back = asked["redirect_uri"]
    return (
        302,
        b"",
        {
            "Location": (
                f"{back}{'&' if '?' in back else '?'}{urlencode({'code': code, 'state': asked['state']})}"
            )
        },
    )


def issue_token(handler: Handler) -> Answer:
    desk, sent = _get_login_service(handler), _parse_query(handler.body.decode())
    basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    if handler.headers.get("Authorization") != f"Basic {basic}":
        raise HubError(401, "The Space does not know its own secret", {})
    account, asked = desk.codes.pop(sent["code"], ("", {}))
    if not account or sent["redirect_uri"] != asked["redirect_uri"]:
        raise HubError(400, "This code was not given out for that address", {})
    made, now, url = f"hf_oauth_{secrets.token_hex(17)}", int(time.time()), handler.hub.url
    handler.hub.tokens[made], desk.tokens[account] = account, made
    claims = {
        **describe_account(url, account),
        "iss": url,
        "aud": CLIENT_ID,
        "iat": now,
        "exp": now + 600,
        "auth_time": now,
        "nonce": asked.get("nonce", ""),
    }
    return answer_json(
        {
            "access_token": made,
            "token_type": "bearer",
            "expires_in": 28800,
            "scope": asked["scope"],
            "id_token": desk.sign_token(claims),
        }
    )


def get_userinfo(handler: Handler) -> Answer:
    return answer_json(describe_account(handler.hub.url, handler.require_account()))


ROUTES: dict[str, Callable[[Handler], Answer]] = {
    r"GET /\.well-known/openid-configuration": get_configuration,
    r"GET /oauth/jwks": list_keys,
    r"GET /oauth/authorize": authorize,
    r"POST /oauth/token": issue_token,
    r"GET /oauth/userinfo": get_userinfo,
}
