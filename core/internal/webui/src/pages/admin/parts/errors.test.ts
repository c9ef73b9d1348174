import { expect, test, vi } from "vitest";
import { ApiError } from "~/api/client";
import { errorsAt } from "./errors";

// The client watches for input as it is loaded.
vi.hoisted(() => Object.assign(globalThis, { window: { addEventListener() {} } }));

const refused = new ApiError(422, "invalid", "The request is not valid.", "", [
  { field: "body.name", message: "is taken" },
  { field: "window.days[1]", message: "must be a day" },
  { field: "names", message: "is something else" },
]);

test("a problem stands at the input of its field", () => {
  const e = errorsAt(refused);
  expect(e.at("name")).toBe("is taken");
  expect(e.at("window")).toBe("days[1]: must be a day");
  expect(e.at("email")).toBeUndefined();
});

test("what no input shows is told below the form", () => {
  const e = errorsAt(refused);
  e.at("name");
  expect(e.others().map((f) => f.field)).toEqual(["window.days[1]", "names"]);
  e.at("window");
  expect((e.rest() as ApiError).errors).toEqual([{ field: "names", message: "is something else" }]);
});

test("no error, no messages", () => {
  const e = errorsAt(null);
  expect(e.at("name")).toBeUndefined();
  expect(e.rest()).toBeUndefined();
});
