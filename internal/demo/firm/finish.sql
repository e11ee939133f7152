-- What is cheaper once the rows are in: keys and indexes; and what logical
-- replication needs to give complete old rows. The rates have none: what an
-- update of one moves, or a delete ends, is remembered.

ALTER TABLE legal_entity ADD PRIMARY KEY (id), ADD UNIQUE (code), REPLICA IDENTITY FULL;
ALTER TABLE customer     ADD PRIMARY KEY (id), REPLICA IDENTITY FULL;
ALTER TABLE project      ADD PRIMARY KEY (id), REPLICA IDENTITY FULL;
ALTER TABLE task         ADD PRIMARY KEY (project_id, number), REPLICA IDENTITY FULL;
ALTER TABLE employee     ADD PRIMARY KEY (id), REPLICA IDENTITY FULL;
ALTER TABLE cost_rate    ADD PRIMARY KEY (id);
ALTER TABLE time_entry   ADD PRIMARY KEY (id), REPLICA IDENTITY FULL;
ALTER TABLE invoice      ADD PRIMARY KEY (id), REPLICA IDENTITY FULL;
ALTER TABLE invoice_line ADD PRIMARY KEY (id), REPLICA IDENTITY FULL;

CREATE INDEX ON cost_rate (employee_id, valid_from);
CREATE INDEX ON invoice_line (invoice_id);
ANALYZE;
