// Passkeys, with an authenticator that Chromium plays: added to an account,
// used to sign in without a password and as the second factor, refused when it
// does not know its owner, removed.
import { check, config, main, person, say, settled, watched } from "./rig.mjs";

await main(async (browser) => {
  const context = await person(browser);
  // The browser's own offer in the name field would sign in by itself here.
  await context.addInitScript(() => {
    PublicKeyCredential.isConditionalMediationAvailable = () => Promise.resolve(false);
  });
  const page = await watched(context, "passkeys");
  // The authenticator goes with any session of the protocol that ends: no axe
  // in this script, which uses one of its own.
  const wire = await context.newCDPSession(page);
  await wire.send("WebAuthn.enable");
  const { authenticatorId } = await wire.send("WebAuthn.addVirtualAuthenticator", {
    options: { protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true },
  });
  const me = async () => (await context.request.get(`${config.url}/api/v1/me`)).json();
  const signOut = async () => {
    const out = await page.evaluate(async () => (await fetch("/api/v1/logout", { method: "POST" })).status);
    check(out < 300, `sign out: ${out}`);
    await page.goto(`${config.url}/`);
    await page.getByLabel("User name").waitFor();
  };
  const password = async () => {
    await page.getByLabel("User name").fill(config.admin.name);
    await page.getByLabel("Password", { exact: true }).fill(config.admin.password);
    await page.keyboard.press("Enter");
  };

  await page.goto(`${config.url}/`);
  await page.getByLabel("User name").waitFor();
  await password();
  await page.getByRole("navigation").first().waitFor();
  await page.goto(`${config.url}/account`);
  await settled(page);
  await page.getByRole("button", { name: "Add a passkey" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Name").fill("Laptop");
  await dialog.getByLabel("Your password").fill(config.admin.password);
  await dialog.getByRole("button", { name: "Continue" }).click();
  await page.getByRole("button", { name: "Remove Laptop" }).waitFor();
  const { credentials } = await wire.send("WebAuthn.getCredentials", { authenticatorId });
  check(credentials.length === 1 && credentials[0].isResidentCredential && credentials[0].rpId === new URL(config.url).hostname, `the authenticator holds ${JSON.stringify(credentials)}`);
  say("added");

  // Signing in with it alone is two factors.
  await signOut();
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.getByRole("navigation").first().waitFor();
  let who = await me();
  check(who.user.name === config.admin.name && who.mfa && who.methods.join() === "passkey", `signed in as ${JSON.stringify(who.methods)}, mfa ${who.mfa}`);
  say("signed in without a password");

  // The password alone is not enough any more; the passkey is its second factor.
  await signOut();
  await password();
  await page.getByRole("button", { name: /passkey/i }).waitFor();
  check((await context.request.get(`${config.url}/api/v1/me`)).status() === 401, "the password alone signed in");
  await page.getByRole("button", { name: /passkey/i }).click();
  await page.getByRole("navigation").first().waitFor();
  who = await me();
  check(who.mfa && who.methods.includes("password") && who.methods.includes("passkey"), `signed in by ${who.methods}`);
  say("as the second factor");

  // Who is not its owner gets nowhere.
  await signOut();
  await wire.send("WebAuthn.setUserVerified", { authenticatorId, isUserVerified: false });
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.getByRole("alert").first().waitFor();
  check((await context.request.get(`${config.url}/api/v1/me`)).status() === 401, "an authenticator that does not know its owner signed in");
  await wire.send("WebAuthn.setUserVerified", { authenticatorId, isUserVerified: true });
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.getByRole("navigation").first().waitFor();
  say("not by somebody else");

  await page.goto(`${config.url}/account`);
  await settled(page);
  await page.getByRole("button", { name: "Remove Laptop" }).click();
  await dialog.getByLabel("Your password").fill(config.admin.password);
  await dialog.getByRole("button", { name: "Remove", exact: true }).click();
  await page.getByRole("button", { name: "Remove Laptop" }).waitFor({ state: "detached" });
  await signOut();
  await password();
  await page.getByRole("navigation").first().waitFor();
  check((await me()).user.passkeys === 0, "the passkey is still there");
  say("removed");
});
