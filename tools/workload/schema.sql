-- The loyalty workload: who collects points, how many they have, and what they bought.
--
--   psql -v customers=1000000 -f tools/workload/schema.sql
--   pgbench -n -D customers=1000000 -f tools/workload/purchase.pgbench
--
-- A customer takes about 0.65 kB with indexes. Its data compress about as a shop's do: names and random ids beside numbers.
\set ON_ERROR_STOP on
\if :{?customers}
\else
\set customers 100000
\endif
BEGIN;
CREATE TABLE customer (
    id       bigint PRIMARY KEY,
    card     uuid NOT NULL,
    name     text NOT NULL,
    email    text NOT NULL,
    profile  jsonb NOT NULL,
    since    timestamptz NOT NULL
);
CREATE TABLE balance (
    customer bigint PRIMARY KEY,
    points   bigint NOT NULL,
    tier     text NOT NULL,
    changed  timestamptz NOT NULL
) WITH (fillfactor = 90);
CREATE TABLE purchase (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer bigint NOT NULL,
    receipt  uuid NOT NULL DEFAULT gen_random_uuid(),
    amount   numeric(12, 2) NOT NULL,
    points   int NOT NULL,
    basket   jsonb NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO customer
SELECT n, gen_random_uuid(), 'Member ' || md5(n::text), md5(random()::text) || '@example.net',
       jsonb_build_object('town', (ARRAY['Bergen', 'Cork', 'Graz', 'Lublin', 'Nantes', 'Turku'])[1 + n % 6],
                          'phone', '+49' || (1500000000 + (random() * 99999999)::int),
                          'marks', jsonb_build_array(md5(random()::text), md5(random()::text), md5(random()::text)),
                          'letters', n % 3 = 0),
       now() - random() * interval '9 years'
FROM generate_series(1, :customers) AS n;
INSERT INTO balance SELECT id, (random() * 10000)::int, 'basic', now() FROM customer;
COMMIT;
CREATE INDEX ON customer (email);
CREATE INDEX ON purchase (customer, at);
CREATE UNIQUE INDEX ON purchase (receipt);
ANALYZE;
