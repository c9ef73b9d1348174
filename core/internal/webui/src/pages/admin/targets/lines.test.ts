import { expect, test } from "vitest";
import { asTable, byLine } from "./lines";

test("a table stays as it is", () => {
  const text = "name,host\ndb-1,10.0.0.1\n";
  expect(asTable(text)).toBe(text);
  expect(asTable("\ufeffHost,Name\n1.2.3.4,a")).toContain("1.2.3.4,a");
});

test("plain lines become a table", () => {
  expect(asTable("10.0.0.1\n# old ones\nvpc-a/db.internal:2222\n\nweb vpc-a/[2001:db8::5]:22")).toBe(
    "name,site,host,port\n10.0.0.1,,10.0.0.1,\ndb.internal,vpc-a,db.internal,2222\nweb,vpc-a,2001:db8::5,22",
  );
});

test("what is no address goes to core, which says so", () => {
  expect(asTable("a:b:c")).toBe("name,site,host,port\na-b-c,,a:b:c,");
});

test("problems stand in the order of the lines", () => {
  expect(byLine([{ field: "line 12: port", message: "is too large" }, { field: "line 2", message: "has 3 fields" }, { field: "body", message: "cannot be read" }])).toEqual([
    { line: "body", text: "cannot be read" }, { line: "Line 2", text: "has 3 fields" }, { line: "Line 12", text: "port is too large" },
  ]);
});
