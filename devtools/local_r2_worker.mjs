// Reads and writes objects through the R2 binding, which takes every key that R2 takes.
export default {
  async fetch(request, env) {
    if (request.headers.get("x-token") !== env.TOKEN) {
      return new Response("wrong token\n", { status: 403 });
    }
    const query = new URL(request.url).searchParams;
    const bucket = env[query.get("bucket")];
    const key = query.get("key");
    if (request.method === "PUT") {
      await bucket.put(key, await request.arrayBuffer());
      return new Response();
    }
    if (request.method === "DELETE") {
      await bucket.delete(key);
      return new Response();
    }
    if (key !== null) {
      const object = await bucket.get(key);
      return new Response(object?.body, { status: object ? 200 : 404 });
    }
    const page = await bucket.list({
      prefix: query.get("prefix") ?? undefined,
      delimiter: query.get("delimiter") ?? undefined,
      startAfter: query.get("startAfter") ?? undefined,
      cursor: query.get("cursor") ?? undefined,
      limit: Number(query.get("limit") ?? 1000),
    });
    return Response.json({
      objects: page.objects.map(({ key, size, etag, uploaded }) => [key, size, etag, uploaded]),
      prefixes: page.delimitedPrefixes,
      cursor: page.truncated ? page.cursor : null,
    });
  },
};
