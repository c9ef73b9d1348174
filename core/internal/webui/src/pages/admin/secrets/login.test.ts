import { expect, test } from "vitest";
import { emptyLogin, loginDocument, seedProblem } from "./login";

test("only what was filled in is stored; a seed loses its blanks", () => {
  expect(loginDocument({ ...emptyLogin, username: "eva", password: " p w ", totp: "jbsw y3dp ehpk 3pxp" })).toEqual({ username: "eva", password: " p w ", totp: "JBSWY3DPEHPK3PXP" });
  expect(loginDocument({ ...emptyLogin, totp: "otpauth://totp/x?secret=JBSWY3DPEHPK3PXP " }).totp).toBe("otpauth://totp/x?secret=JBSWY3DPEHPK3PXP");
});

test.each([
  ["", true], ["JBSWY3DPEHPK3PXP", true], ["jbsw y3dp-ehpk 3pxp", true], ["otpauth://totp/Wiki:eva?issuer=Wiki&secret=JBSWY3DPEHPK3PXP", true],
  ["otpauth://hotp/x?secret=JBSWY3DPEHPK3PXP", false], ["otpauth://totp/x", false], ["short", false], ["JBSWY3DPEHPK3PX1", false],
])("is %j a seed: %s", (text, ok) => {
  expect(seedProblem(text) === undefined).toBe(ok);
});
