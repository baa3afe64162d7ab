"""httpx and its HTTP/2 (h2) against what is behind a waypoint, in both versions: web.py ADDRESS."""

import asyncio
import sys
import time

import httpx

SIZE = 4 << 20


def check(what, is_so, *facts):
    if not is_so:
        sys.exit(f"{what}: {facts}")


async def endless(client):
    """A body without an end is left when there was enough of it."""
    got = 0
    async with client.stream("GET", "/source") as response:
        async for piece in response.aiter_raw():
            got += len(piece)
            if got > SIZE:
                break
    check("source", got > SIZE, got)


async def tried(base, two):
    kind = {"base_url": base, "http1": not two, "http2": two, "timeout": 20}
    # A connection of its own: httpx leaves an HTTP/2 stream without a word, and what still comes there fills the connection's window.
    async with httpx.AsyncClient(**kind) as client:
        await endless(client)
    async with httpx.AsyncClient(**kind) as client:
        version = "HTTP/2" if two else "HTTP/1.1"
        answers = await asyncio.gather(*(client.get("/name") for _ in range(200)))
        check("200 at a time", all(one.status_code == 200 and one.text == "web" for one in answers))
        check("version", all(one.http_version == version for one in answers), answers[0].http_version)
        seen = (await client.get("/who?q=%20a", headers=[("cookie", "a=1"), ("cookie", "b=2"), ("x-two", "1"), ("x-two", "2")])).json()
        check("target", seen["target"].endswith("/who?q=%20a"), seen)
        check("identity", "By=spiffe://" in seen["headers"]["x-forwarded-client-cert"], seen)
        body = await client.post("/length", content=b"x" * SIZE)
        check("length", body.text == f"{SIZE} bytes", body.text)
        head = await client.head("/own")
        check("HEAD", head.status_code == 200 and head.content == b"", head)
        check("own", (await client.get("/own")).text == "own words")
        moved = await client.get("/moved/here?a=b")
        check("moved", moved.status_code == 308 and moved.headers["location"].endswith("/name/here?a=b"), moved.headers)
        denied = await client.get("/denied")
        check("denied", denied.status_code == 403, denied)
        began = time.monotonic()
        late = await client.get("/wait")
        check("timeout", late.status_code == 504 and time.monotonic() - began < 10, late)
        check("after all that", (await client.get("/name")).text == "web")


async def main():
    for two in (False, True):
        await tried(f"http://{sys.argv[1]}", two)
    print(f"httpx {httpx.__version__}: HTTP/1.1 and HTTP/2")


asyncio.run(main())
