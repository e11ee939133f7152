-- A firm that nobody knows: two schemas, other words, enums, intervals, foreign keys.
CREATE SCHEMA hr;
CREATE SCHEMA "Finance";
CREATE TYPE hr.booking_state AS ENUM ('draft', 'submitted', 'approved', 'rejected');
CREATE TYPE "Finance".bill_state AS ENUM ('open', 'paid', 'cancelled');
CREATE TABLE public.clients (client_no text PRIMARY KEY, legal_name text NOT NULL, country char(2), vat_no text, billing_email text, archived boolean NOT NULL DEFAULT false, subsidiary_id int NOT NULL, changed_at timestamptz NOT NULL);
CREATE TABLE hr.people (person_id uuid PRIMARY KEY, staff_no text NOT NULL, full_name text NOT NULL, work_email text, job_title text, hire_date timestamp, left_at date, company_code text NOT NULL, api_key text, pin text, changed_at timestamp NOT NULL);
CREATE TABLE public.engagements (id bigint PRIMARY KEY, code text NOT NULL, title text NOT NULL, client_no text NOT NULL REFERENCES public.clients, company_code text NOT NULL, ccy char(3) NOT NULL, phase text NOT NULL, billing_model text NOT NULL, starts_on date NOT NULL, ends_on date, hours_sold numeric, changed_at timestamptz NOT NULL, deleted_at timestamptz);
CREATE TABLE hr.bookings (id bigint, worker uuid NOT NULL REFERENCES hr.people, booked_by uuid NOT NULL REFERENCES hr.people, engagement bigint NOT NULL REFERENCES public.engagements, "Task No" text, work_day timestamp NOT NULL, worked interval NOT NULL, chargeable boolean, state hr.booking_state NOT NULL, remark text, hourly_rate numeric(14,6), created_at timestamptz NOT NULL, changed_at timestamptz NOT NULL, PRIMARY KEY (id, work_day)) PARTITION BY RANGE (work_day);
CREATE TABLE hr.bookings_2026 PARTITION OF hr.bookings FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE hr.staff_rates (id int PRIMARY KEY, person_id uuid NOT NULL REFERENCES hr.people, effective_from date NOT NULL, effective_until date, cost_per_hour numeric(10,2) NOT NULL, currency char(3) NOT NULL, last_update timestamptz NOT NULL);
CREATE TABLE "Finance"."Bills" ("BillId" int PRIMARY KEY, "BillNo" text NOT NULL, "ClientNo" text NOT NULL REFERENCES public.clients, "CompanyCode" text NOT NULL, "DocType" text NOT NULL, "State" "Finance".bill_state NOT NULL, "IssuedOn" date, "Currency" char(3) NOT NULL, "NetTotal" numeric(14,2) NOT NULL, "UpdatedAt" timestamptz NOT NULL);
CREATE TABLE "Finance"."BillLines" ("LineId" int PRIMARY KEY, "BillId" int NOT NULL REFERENCES "Finance"."Bills", "EngagementId" bigint REFERENCES public.engagements, "Text" text, "Qty" double precision NOT NULL, "Price" numeric(12,4) NOT NULL, "Amount" numeric(14,2) NOT NULL);
CREATE TABLE public.audit_log (at timestamptz NOT NULL, who text, what jsonb);
CREATE TABLE public.queue (id int PRIMARY KEY DEFERRABLE, payload jsonb);
CREATE TABLE hr.sessions (session_token text PRIMARY KEY, person_id uuid NOT NULL);
INSERT INTO public.clients VALUES ('C-1', 'Unseen client', 'DE', NULL, NULL, false, 1, now());
ANALYZE;
