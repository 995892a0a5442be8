// Files of an exported site. Errors name the file, and say how to get it.

const COPY = "Copy the whole exported folder to the host, or export the site again.";

/** The sentence about a file that the host does not have. */
export const missing = (path, why) => `${path}: ${why}. ${COPY}`;

/** The response with a file of the site. @throws if the host cannot be reached, or does not have it */
export async function siteFile(path) {
  const response = await fetch(path).catch(() => {
    throw new Error(`${path}: the host cannot be reached. Reload the page when it answers again.`);
  });
  if (!response.ok) throw new Error(missing(path, `the host answers ${response.status}`));
  return response;
}
