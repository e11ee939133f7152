-- The PSA of the demo's firm: what a professional-services firm keeps of its
-- people, projects, hours, rates and invoices. Plain tables, no triggers: what
-- tallywire sees is what the application wrote.

CREATE TABLE legal_entity (
    id       int     NOT NULL,
    code     text    NOT NULL,
    name     text    NOT NULL,
    currency char(3) NOT NULL
);

CREATE TABLE customer (
    id           bigint      NOT NULL,
    number       text        NOT NULL,
    name         text        NOT NULL,
    legal_entity text        NOT NULL,
    country      text,
    tax_id       text,
    email        text,
    active       boolean     NOT NULL,
    updated_at   timestamptz NOT NULL
);

-- customer_id has no foreign key: the sales department's import brings
-- projects before their customers.
CREATE TABLE project (
    id           bigint      NOT NULL,
    number       text        NOT NULL,
    name         text        NOT NULL,
    customer_id  bigint      NOT NULL,
    legal_entity text        NOT NULL,
    currency     char(3)     NOT NULL,
    status       text        NOT NULL,
    billing_type text        NOT NULL,
    start_date   date,
    end_date     date,
    budget_hours numeric(10,2),
    updated_at   timestamptz NOT NULL
);

CREATE TABLE task (
    project_id bigint  NOT NULL,
    number     text    NOT NULL,
    name       text    NOT NULL,
    billable   boolean NOT NULL
);

CREATE TABLE employee (
    id           bigint      NOT NULL,
    number       text        NOT NULL,
    first_name   text        NOT NULL,
    last_name    text        NOT NULL,
    email        text,
    legal_entity text        NOT NULL,
    title        text,
    hired_on     date,
    left_on      date,
    active       boolean     NOT NULL,
    updated_at   timestamptz NOT NULL
);

-- valid_to is exclusive; null: until further notice.
CREATE TABLE cost_rate (
    id          bigint        NOT NULL,
    employee_id bigint        NOT NULL,
    valid_from  date          NOT NULL,
    valid_to    date,
    rate        numeric(12,4) NOT NULL,
    currency    char(3)       NOT NULL,
    updated_at  timestamptz   NOT NULL
);

-- status: draft, submitted, approved, rejected; approved is final.
CREATE TABLE time_entry (
    id          bigint        NOT NULL,
    employee_id bigint        NOT NULL,
    project_id  bigint        NOT NULL,
    task_number text          NOT NULL,
    work_date   date          NOT NULL,
    hours       numeric(6,2)  NOT NULL,
    billable    boolean       NOT NULL,
    status      text          NOT NULL,
    note        text,
    bill_rate   numeric(12,4),
    created_at  timestamptz   NOT NULL,
    updated_at  timestamptz   NOT NULL
);

-- kind: invoice, credit_note; status: draft, issued, void.
CREATE TABLE invoice (
    id           bigint        NOT NULL,
    number       text          NOT NULL,
    customer_id  bigint        NOT NULL,
    legal_entity text          NOT NULL,
    kind         text          NOT NULL,
    status       text          NOT NULL,
    invoice_date date,
    currency     char(3)       NOT NULL,
    total        numeric(14,2) NOT NULL,
    updated_at   timestamptz   NOT NULL
);

-- Amounts are positive on credit notes too; the invoice's kind gives the sign.
CREATE TABLE invoice_line (
    id          bigint        NOT NULL,
    invoice_id  bigint        NOT NULL,
    project_id  bigint        NOT NULL,
    description text,
    quantity    numeric(12,2) NOT NULL,
    unit_price  numeric(12,4) NOT NULL,
    amount      numeric(14,2) NOT NULL
);
