"""Attacks by what a request says: bodies, near-keys, ambiguous framing, templates, grammars."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from typing import Any

import aiohttp

from ember.front.api.schemas import ChatRequest, CompletionRequest, TokenizeRequest
from tests.attack.report import Report, chat, time_left
from tests.attack.server import CHAT, KEY, PROMPT_MARK, QUESTION, Server

ROUTES = (CHAT, "/v1/completions", "/tokenize", "/detokenize", "/v1/chat/completions/batch")
GET_ROUTES = ("/v1/models", "/metrics", "/boot", "/version", "/load", "/tokenizer_info", "/openapi.json")


def hostile_value(rng: random.Random) -> str:
    """JSON text of a value that no field expects."""
    size = rng.choice([1, 100, 1_000, 20_000])
    return rng.choice(
        [
            "[" * size + "]" * size,
            '{"a":' * size + "1" + "}" * size,
            "9" * size,
            "-" + "9" * size,
            f"1e{size}",
            "0." + "1" * size,
            '"' + "\\ud800" * min(size, 50) + '"',
            '"' + "\\u0000" * min(size, 50) + '"',
            "NaN",
            "-Infinity",
            "null",
            "true",
            "[]",
            "{}",
            '""',
            '"' + "x" * size + '"',
            "[" + ",".join(["1"] * size) + "]",
            "{" + ",".join(f'"k{index}":{index}' for index in range(size)) + "}",
            '{"a":1,"a":2}',
            "1.5",
            "-1",
            "2147483648",
            "18446744073709551616",
        ]
    )


_FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *TokenizeRequest.model_fields})


async def bodies(server: Server, rng: random.Random, seconds: float) -> Report:
    """Bodies that are no JSON, odd JSON, or sound JSON with an odd value in one field, in several encodings."""
    report = Report()
    began = time.monotonic()
    while time_left(began, seconds):
        path = rng.choice(ROUTES)
        sound = json.dumps({**chat(), "prompt": PROMPT_MARK, "tokens": [1, 2]})
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.randbytes(rng.choice([0, 1, 10, 1000])).decode("latin-1").encode()
        elif kind == 1:
            data = sound.encode()[: rng.randrange(len(sound))]
        else:
            text = sound[:-1] + f', "{rng.choice(_FIELDS)}": {hostile_value(rng)}}}'
            data = text.encode(
                rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1"]), "replace"
            )
        headers = {"Content-Type": rng.choice(["application/json"] * 6 + ["text/plain", "application/json; charset=x"])}
        if rng.random() < 0.1:
            headers["Content-Encoding"] = rng.choice(["gzip", "deflate", "br", "identity", "nonsense"])
        try:
            status, text = await server.post(data, path, headers)
        except aiohttp.ClientError as error:
            report.count(type(error).__name__)
            continue
        report.check_answer((path, headers, data[:200]), status, text)
    return report


async def keys(server: Server, rng: random.Random, seconds: float) -> Report:
    """Everything that is nearly the key, on every route."""
    report = Report()
    began = time.monotonic()
    near = [
        KEY[:-1],
        KEY + "x",
        KEY.upper(),
        f" {KEY}",
        f"{KEY} ",
        f"{KEY},",
        f"{KEY}\t{KEY}",
        f'"{KEY}"',
        "null",
        "",
        "*",
    ]
    near = [value for value in near if value.strip() != KEY]
    async with aiohttp.ClientSession(server.base) as stranger:
        while time_left(began, seconds):
            value = rng.choice(near)
            header = rng.choice(
                [
                    {"Authorization": f"Bearer {value}"},
                    {"Authorization": f"Basic {KEY}"},
                    {"Authorization": KEY},
                    {"Authorization": f"Bearer{KEY}"},
                    {"X-Authorization": f"Bearer {KEY}"},
                    {"Cookie": f"Authorization=Bearer {KEY}; api_key={KEY}"},
                    {"X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/health", "X-Rewrite-URL": "/health"},
                    {"X-HTTP-Method-Override": "GET", "Host": "localhost"},
                    {},
                ]
            )
            path = rng.choice([*ROUTES, *GET_ROUTES, "/health/../metrics", "/x//metrics", "/metrics/", "/METRICS"])
            path += rng.choice(["", f"?api_key={KEY}", f"?token={KEY}", "#", "?", ";/health", "%2e%2e"])
            method = rng.choice(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE"])
            try:
                async with stranger.request(method, path, headers=header, json=chat()) as response:
                    text, status = await response.text(), response.status
            except (aiohttp.ClientError, ValueError) as error:
                report.count(type(error).__name__)
                continue
            report.check_answer((method, path, header), status, text)
            is_page = response.url.raw_path == "/" and (method == "HEAD" or text.startswith("<!"))  # it asks for a key
            is_open = is_page or (method == "OPTIONS" and status in (200, 204) and not text)
            if status < 400 and not is_open:
                report.wrong.append(f"{status} without the key: {method} {path} {header}")
    return report


def _smuggled(rng: random.Random) -> bytes:
    """One connection's worth of bytes in which a second request, with the key of nobody, may hide."""
    hidden = b"GET /boot HTTP/1.1\r\nHost: x\r\n\r\n"
    body = json.dumps(chat()).encode()
    eol = rng.choice([b"\r\n", b"\r\n", b"\n", b"\r"])
    head = [
        b"POST " + rng.choice([CHAT.encode(), b"/health", b"http://x/health", b"*", b"/%0d%0aX: y"]) + b" HTTP/1.1",
        b"Host: x",
        b"Content-Type: application/json",
    ]
    length = rng.choice([str(len(body)), "0", "-1", "+5", "5, 6", "0x10", "9" * 30, "٣", " 7 ", ""]).encode()
    head += rng.sample(
        [
            b"Content-Length: " + length,
            b"Content-Length: " + str(len(hidden)).encode(),
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding : chunked",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: chunked, identity",
            b"Transfer-Encoding:\x0bchunked",
            b" folded: line",
            b"X: a\x00b",
            b"Connection: keep-alive, Transfer-Encoding",
            b"Expect: 100-continue",
            b"Upgrade: h2c",
        ],
        k=rng.randint(1, 4),
    )
    chunks = rng.choice(
        [b"0\r\n\r\n", b"5\r\nabcde\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFF\r\n", b"5;ext=\n\r\nabcde\r\n", b"-1\r\n"]
    )
    return eol.join(head) + eol + eol + rng.choice([body, chunks, b""]) + hidden


async def smuggling(server: Server, rng: random.Random, seconds: float) -> Report:
    """Ambiguous framing without the key: no request that hides in another one is served."""
    report = Report()
    began = time.monotonic()
    while time_left(began, seconds):
        data = _smuggled(rng)
        reader, writer = await server.connect()
        answer = b""
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            async with asyncio.timeout(10):
                answer = await reader.read(200_000)
        writer.close()
        first = answer[:12].decode("latin-1")
        report.count(first or "closed")
        if b"HTTP/1.1 5" in answer or b"Traceback" in answer or b'"phases"' in answer:
            report.wrong.append(f"{answer[:200]!r} for {data[:400]!r}")
    return report


def _bomb(rng: random.Random) -> str:
    size = rng.choice([10**3, 10**6, 10**9])
    return rng.choice(
        [
            f"{{% for i in range({size}) %}}{{% for j in range({size}) %}}x{{% endfor %}}{{% endfor %}}",
            f"{{{{ 'x' * {size} }}}}",
            f"{{{{ ('x' * {size}) | length }}}}",
            "{% set ns = namespace(a='x') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ cycler.__init__.__globals__.os.environ }}",
            "{{ messages.__class__.__base__ }}",
            "{{ lipsum.__globals__['os'].environ }}",
            "{{ self.__init__.__globals__ }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}{{ os.environ }}",
            "{{ namespace.__init__.__globals__ }}",
            "{{ raise_exception('x' * 10000000) }}",
            "{{ (1).__class__ }}{{ 2 ** 10 ** 10 }}",
            f"{{{{ range({size}) | list | length }}}}",
            "{{ messages | tojson(indent=99999999) }}",
            "{{ '%999999999d' % 1 }}",
            "{{ '{0.__class__}'.format(messages) }}",
            "{% if " + "(" * 3000 + "1" + ")" * 3000 + " %}{% endif %}",
            "{{ " + "-" * 20000 + "1 }}",
            "{" * 50000,
        ]
    )


async def templates(server: Server, rng: random.Random, seconds: float) -> Report:
    """Templates that loop, grow, reach for Python, or do not parse."""
    report = Report()
    began = time.monotonic()

    async def one() -> None:
        bomb = _bomb(rng)
        status, text = await server.post(json.dumps(chat(chat_template=bomb)))
        report.check_answer(bomb[:100], status, text)

    while time_left(began, seconds):
        await asyncio.gather(*(one() for _ in range(3)))
    return report


def ambiguous_grammar(rng: random.Random) -> str:
    """Rules that all match everything, in terms of each other."""
    count = rng.choice([5, 15, 30])
    rules = [f"start: {' | '.join(f'a{index}' for index in range(count))}"]
    for index in range(count):
        others = [rng.randrange(count) for _ in range(6)]
        parts = [
            f"a{index} a{index}",
            f"a{others[0]} a{others[1]}",
            f"a{others[2]} a{others[3]} a{others[4]}",
            "/[a-z ]/",
        ]
        rules.append(f"a{index}: {' | '.join(parts)}")
    return "\n".join(rules)


def _hostile_grammar(rng: random.Random) -> dict[str, Any]:
    many = rng.choice([10, 1_000, 20_000])
    word = "".join(rng.choices("abcdefgh", k=6))
    schema = rng.choice(
        [
            {
                "anyOf": [
                    {"type": "object", "properties": {f"{word}{i}": {"type": "string"}}} for i in range(many // 10)
                ]
            },
            {"enum": [f"{word}{i}" for i in range(many)]},
            {"type": "string", "minLength": many, "maxLength": many * 10},
            {"type": "array", "items": {"type": "integer"}, "minItems": many, "maxItems": many},
            {"type": "string", "pattern": f"^(a|b|ab){{{many}}}$"},
            {"type": "string", "pattern": "^(a+)+(b+)+(a|aa)+$"},
            {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}},
            {"type": "object", "patternProperties": {f"^[a-z]{{1,{i % 40 + 1}}}$": {} for i in range(min(many, 40))}},
            {"allOf": [{"properties": {f"p{i}": {"type": "number"}}} for i in range(many // 20)]},
        ]
    )
    return rng.choice(
        [
            {"structured_outputs": {"grammar": ambiguous_grammar(rng)}},
            {"structured_outputs": {"grammar": ambiguous_grammar(rng)}},
            {"structured_outputs": {"grammar": "start: start start | /./"}},
            {"structured_outputs": {"regex": f"([a-z]{{1,{many}}}){{1,{many}}}"}},
            {"structured_outputs": {"regex": "(x+x+)+y"}},
            {"structured_outputs": {"choice": [f"{word}{i}" for i in range(many)]}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
            {"guided_json": schema},
        ]
    )


async def grammars(server: Server, rng: random.Random, seconds: float) -> Report:
    """Several clients with grammars that are too large, too deep or too ambiguous, while a chat beside them goes on."""
    report = Report()
    began = time.monotonic()
    is_over = False

    async def hostile() -> None:
        while not is_over:
            fields = _hostile_grammar(rng)
            data = json.dumps(chat(**fields, n=rng.choice([1, 1, 8, 64]), temperature=1, max_tokens=30))
            status, text = await server.post(data)
            report.check_answer(data[:200], status, text, allowed=(503,))

    async def beside() -> int:
        answered = 0
        while time_left(began, seconds) or not answered:
            answer = await server.ask(QUESTION)
            assert "Paris" in answer["choices"][0]["message"]["content"]
            answered += 1
        return answered

    attackers = [asyncio.create_task(hostile()) for _ in range(4)]
    report.outcomes["answers beside"] = await beside()
    is_over = True
    await asyncio.gather(*attackers)
    return report
