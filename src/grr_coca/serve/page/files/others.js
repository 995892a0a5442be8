// The same thing in the other icon sets of a library: of each set, the picture that is most like the one that is open.

const MAX_SETS = 12; // a search each
const MIN_RELEVANCE = 0.1; // as in `grr_coca.search.relevance`

/**
 * Pictures of the other sets, the likeliest first; none if the library has one set, or none.
 * @param backend as `app.js` describes it
 * @param entry the picture that is open
 */
export async function inOtherSets(backend, entry, signal) {
  const own = entry.fields?.set;
  if (own === undefined) return [];
  const { facets } = await backend.facets();
  const sets = facets.find(({ field }) => field === "set")?.values ?? [];
  const others = sets.map(([value]) => value).filter((value) => value !== own).slice(0, MAX_SETS);
  const found = await Promise.all(
    others.map((set) => {
      const asked = { texts: [], without: [], like: [entry.id], unlike: [], image: null, filters: { set: { in: [set] } } };
      return backend.search({ ...asked, offset: 0, limit: 1 }, signal);
    }),
  );
  return found
    .flatMap(({ hits, can_tell }) => hits.slice(0, 1).filter(({ relevance }) => !can_tell || relevance >= MIN_RELEVANCE))
    .sort((a, b) => b.score - a.score);
}
