-- Names that need quotes, in SQL, in YAML or in expressions.
CREATE SCHEMA "My Schema";
CREATE TABLE "My Schema"."Kunde" ("Kunden Nr" text PRIMARY KEY, "Name" text NOT NULL, "Company Code" int NOT NULL, "Aktiv" bool NOT NULL, "Land" varchar(2), "Geändert am" timestamptz NOT NULL, "E-Mail" text, "Paßwort:Hash" text);
CREATE TABLE "My Schema"."Time Entry" (a int NOT NULL, b int NOT NULL, "user" int NOT NULL, "Projekt" uuid NOT NULL, "in" int, "Date" timestamptz NOT NULL, "Minutes" float4 NOT NULL, "status" text NOT NULL, "is deleted" bool, "note" json, "Created At" date NOT NULL, updated timestamp(0) NOT NULL, PRIMARY KEY (a, b));
CREATE TABLE "My Schema"."Invoice" ("Inv-Id" int PRIMARY KEY, "a:b" int, "Kunde" text NOT NULL REFERENCES "My Schema"."Kunde", "no" text NOT NULL, "To:tal" numeric(14,2) NOT NULL, "Summe" numeric NOT NULL, "Type" text NOT NULL, "Date" text, "Currency Code" char(3) NOT NULL);
ANALYZE;
