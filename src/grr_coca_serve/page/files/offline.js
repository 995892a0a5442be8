// The service worker of an exported site: what was loaded once is kept, and works without a network.

const VERSION = "site"; // `export web` writes a version here, so that a new export replaces what is kept

addEventListener("install", (event) => event.waitUntil(skipWaiting()));

addEventListener("activate", (event) =>
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys()) if (name.startsWith("grr-coca ") && name !== nameOf()) await caches.delete(name);
      await clients.claim();
    })(),
  ),
);

/** Caches belong to a host, which may have several sites. */
function nameOf() {
  return `grr-coca ${registration.scope} ${VERSION}`;
}

addEventListener("message", (event) => {
  const { keep } = event.data;
  if (!Array.isArray(keep)) return;
  event.waitUntil(
    (async () => {
      const cache = await caches.open(nameOf());
      for (const address of keep) {
        if (!address.startsWith(registration.scope) || (await cache.match(address))) continue;
        const response = await fetchNewest(address).catch(() => null);
        if (response?.ok) await cache.put(address, response);
      }
      event.source?.postMessage({ kept: true });
    })(),
  );
});

/**
 * A file as the host has it now. The browser's own cache may have that of an earlier version, which would be kept with
 * the files of this one. If the host says that it is the same, it is not loaded again.
 */
function fetchNewest(request) {
  return fetch(request, { cache: "no-cache" });
}

addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(registration.scope)) return;
  event.respondWith(answer(request));
});

async function answer(request) {
  const cache = await caches.open(nameOf());
  // All files of one version belong together, so none is taken from the network if it is kept.
  const kept = await cache.match(request);
  if (kept) return kept;
  const response = await fetchNewest(request);
  // What cannot be kept, as on a full disk, is shown all the same.
  if (response.status === 200) await cache.put(request, response.clone()).catch(() => {});
  return response;
}
