-- Semel's tables on SQLite. Each constraint names the promise (P) or the rule (C, L, S, J) that it holds.
--
-- Times are milliseconds since the Unix epoch. Ids are text, compared byte by byte. What a model or a
-- program said is a BLOB: an answer may hold NUL or half a character. Wide columns stand last in their
-- row, so that a scan of the narrow ones does not read them.

-- Who leads, and how far its commits have come.
CREATE TABLE leadership (
    namespace TEXT NOT NULL PRIMARY KEY,                                 -- one leader a namespace
    epoch     INTEGER NOT NULL CHECK (epoch BETWEEN 1 AND 2147483647),   -- C8: the upper 31 bits of a fencing token
    seq       INTEGER NOT NULL CHECK (seq >= 0),                         -- C1: 0 is the takeover, then one a commit
    holder    TEXT NOT NULL,                                             -- for people: the process that took over
    taken_at  INTEGER NOT NULL
) STRICT;

-- What was submitted. A job of a million cells is one row.
CREATE TABLE jobs (
    number        INTEGER PRIMARY KEY,                                   -- the order of submission
    namespace     TEXT NOT NULL,
    job_id        TEXT NOT NULL,
    digest        BLOB NOT NULL CHECK (length(digest) = 32),             -- P6: tells the same submission from another
    state         TEXT NOT NULL CHECK (state IN ('open', 'cancelled', 'expired')),  -- J1: complete is derived, never stored
    paused        INTEGER NOT NULL CHECK (paused IN (0, 1)),
    input_version INTEGER NOT NULL CHECK (input_version >= 1),           -- P8: the format of the frozen inputs
    submitted_at  INTEGER NOT NULL,
    deadline_at   INTEGER NOT NULL,                                      -- J3: every job has one
    closed_at     INTEGER,
    completed_at  INTEGER,                                               -- J1: when the last cell was recorded
    sent_spec     BLOB NOT NULL,                                         -- J2: as sent, RFC 8785 JSON
    resolved_spec BLOB NOT NULL,                                         -- P8: with the defaults written out; this is what runs
    UNIQUE (namespace, job_id),                                          -- P6: one job an id
    CHECK (state <> 'open' OR closed_at IS NULL)                         -- J1: an open job was not closed
) STRICT;

-- The records: inserted once, never updated. A retry moves a row, whole, to `attempts`.
CREATE TABLE executions (
    namespace         TEXT NOT NULL,
    job_id            TEXT NOT NULL,
    region            TEXT NOT NULL,
    model             TEXT NOT NULL,
    question          TEXT NOT NULL,
    repeat            INTEGER NOT NULL CHECK (repeat >= 0),
    cell              INTEGER NOT NULL CHECK (cell BETWEEN 0 AND 4294967294),
    status            TEXT NOT NULL CHECK (status IN ('succeeded', 'failed')),
    attempt           INTEGER NOT NULL CHECK (attempt >= 1),
    agent_id          TEXT NOT NULL,
    fencing_token     INTEGER NOT NULL CHECK (fencing_token >= 4294967296),  -- P7: of epoch 1 or later
    digest            BLOB NOT NULL CHECK (length(digest) = 32),
    input_digest      BLOB NOT NULL CHECK (length(input_digest) = 32),
    recorded_at       INTEGER NOT NULL,
    served_region     TEXT,
    region_basis      TEXT CHECK (region_basis IN ('reported', 'certificate', 'configured')),
    served_model      TEXT,
    request_id        TEXT,
    endpoint          TEXT,
    executor          TEXT,
    waited_ms         INTEGER NOT NULL CHECK (waited_ms >= 0),
    ran_ms            INTEGER NOT NULL CHECK (ran_ms >= 0),
    first_byte_ms     INTEGER CHECK (first_byte_ms >= 0),
    finish_reason     TEXT,
    prompt_tokens     INTEGER CHECK (prompt_tokens >= 0),
    completion_tokens INTEGER CHECK (completion_tokens >= 0),
    failure_reason    TEXT,
    failure_stage     TEXT,
    failure_code      TEXT,
    failure_retryable INTEGER CHECK (failure_retryable IN (0, 1)),
    error_message     BLOB,
    output            BLOB,
    response          BLOB,
    PRIMARY KEY (namespace, job_id, region, model, question, repeat),    -- P1: one record an execution key
    UNIQUE (namespace, job_id, cell),                                    -- P1, seen from the index; also the order of listings
    UNIQUE (namespace, fencing_token),                                   -- P3: a lease records once; C10: found by its token
    -- P8: a success was served by the region that was asked for, never silently by another.
    CHECK (status = 'failed' OR served_region IS NULL OR served_region = region),
    -- A success has an answer and no failure; a failure says why, and where in its course.
    CHECK ((status = 'succeeded') = (output IS NOT NULL AND response IS NOT NULL AND finish_reason IS NOT NULL)),
    CHECK ((status = 'failed') = (failure_reason IS NOT NULL AND failure_stage IS NOT NULL AND failure_code IS NOT NULL
           AND failure_retryable IS NOT NULL AND error_message IS NOT NULL)),
    -- What served is known whole or not at all.
    CHECK ((served_region IS NULL) = (region_basis IS NULL AND served_model IS NULL AND request_id IS NULL
           AND endpoint IS NULL AND executor IS NULL))
) STRICT;

-- A new leader reads which of a job's records are failures; a retry reads them too. Costs a success nothing.
CREATE INDEX executions_failed ON executions (namespace, job_id, cell) WHERE status = 'failed';

-- The leases: one row for those that one commit gave to one agent. The i-th has the token first_token + i.
CREATE TABLE lease_grants (
    namespace   TEXT NOT NULL,
    first_token INTEGER NOT NULL CHECK (first_token >= 4294967296),      -- P7: of epoch 1 or later
    nonce       BLOB NOT NULL CHECK (length(nonce) = 16),                -- P3, C8: a token can't be guessed
    ttl_ms      INTEGER NOT NULL CHECK (ttl_ms >= 0),                    -- L1: what its agent was told
    agent_id    TEXT NOT NULL,
    incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
    job_id      TEXT NOT NULL,
    -- A JSON array of cells; null is a slot whose lease ended in anything but a record (C9). Grants are small (§4).
    cells       TEXT NOT NULL CHECK (json_valid(cells) AND json_array_length(cells) BETWEEN 1 AND 64),
    PRIMARY KEY (namespace, first_token)                                 -- P7: a token is granted once
) STRICT, WITHOUT ROWID;

-- The history of what did not go well: append-only.
CREATE TABLE attempts (
    number            INTEGER PRIMARY KEY,                               -- the order in which they ended
    namespace         TEXT NOT NULL,
    job_id            TEXT NOT NULL,
    region            TEXT NOT NULL,
    model             TEXT NOT NULL,
    question          TEXT NOT NULL,
    repeat            INTEGER NOT NULL CHECK (repeat >= 0),
    cell              INTEGER NOT NULL CHECK (cell BETWEEN 0 AND 4294967294),
    fencing_token     INTEGER NOT NULL CHECK (fencing_token >= 4294967296),
    kind              TEXT NOT NULL CHECK (kind IN ('failed', 'lost', 'fenced', 'replaced', 'released', 'closed')),
    digest            BLOB NOT NULL CHECK (length(digest) = 32),         -- of the whole answer; zero where nothing was reported
    attempt           INTEGER NOT NULL CHECK (attempt >= 0),             -- 0 where it isn't known
    counted           INTEGER NOT NULL CHECK (counted IN (0, 1)),        -- S7
    in_company        INTEGER NOT NULL CHECK (in_company IN (0, 1)),     -- S7
    agent_id          TEXT NOT NULL,
    reason            TEXT,                                              -- why, where nothing was reported
    fenced            TEXT,                                              -- why a report was refused
    retry_at          INTEGER,                                           -- not leased again before
    ended_at          INTEGER NOT NULL,
    status            TEXT CHECK (status IN ('succeeded', 'failed')),    -- NULL where nothing was reported
    input_digest      BLOB CHECK (length(input_digest) = 32),
    served_region     TEXT,
    region_basis      TEXT CHECK (region_basis IN ('reported', 'certificate', 'configured')),
    served_model      TEXT,
    request_id        TEXT,
    endpoint          TEXT,
    executor          TEXT,
    waited_ms         INTEGER,
    ran_ms            INTEGER,
    first_byte_ms     INTEGER,
    finish_reason     TEXT,
    prompt_tokens     INTEGER,
    completion_tokens INTEGER,
    failure_reason    TEXT,
    failure_stage     TEXT,
    failure_code      TEXT,
    failure_retryable INTEGER CHECK (failure_retryable IN (0, 1)),
    output_bytes      INTEGER,                                           -- of the whole output, of which `output` may be the beginning
    error_message     BLOB,
    output            BLOB,
    response          BLOB,
    UNIQUE (namespace, fencing_token, kind, digest),                     -- C10: the same report again changes nothing
    -- A late answer is bounded in size; a record that a retry replaced is kept whole.
    CHECK (kind = 'replaced' OR (coalesce(length(output), 0) <= 65536 AND coalesce(length(response), 0) <= 65536
           AND coalesce(length(error_message), 0) <= 65536))
) STRICT;

-- A new leader reads a job's history for its budgets; a listing reads it in the order in which it ended.
CREATE INDEX attempts_job ON attempts (namespace, job_id);

-- Every incarnation ever admitted (S5): an earlier one is refused for good.
CREATE TABLE agents (
    namespace   TEXT NOT NULL,
    agent_id    TEXT NOT NULL,
    incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
    number      INTEGER NOT NULL CHECK (number >= 1),
    region      TEXT NOT NULL,
    admitted_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, agent_id, incarnation),                      -- S5: an incarnation is admitted once
    UNIQUE (namespace, agent_id, number)                                 -- S5: and has a place of its own in the order
) STRICT, WITHOUT ROWID;

-- Who did what: written in the commit of the deed (L4).
CREATE TABLE audit_log (
    number    INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    at        INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    action    TEXT NOT NULL,
    job_id    TEXT,
    detail    TEXT NOT NULL
) STRICT;

CREATE INDEX audit_log_namespace ON audit_log (namespace);

-- The live leases, one a row: the slot is not blank and its key has no record (C9). Without the nonce: it is a secret.
CREATE VIEW leases AS
SELECT g.namespace, g.job_id, s.atom AS cell, g.first_token + s.key AS fencing_token, g.agent_id,
       lower(hex(g.incarnation)) AS incarnation, g.ttl_ms
FROM lease_grants AS g, json_each(g.cells) AS s
WHERE s.atom IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM executions AS e
                  WHERE e.namespace = g.namespace AND e.job_id = g.job_id AND e.cell = s.atom);

-- The records as people read them. `status` says whether it ran, `class` what the answer says: of that only `empty` is known.
CREATE VIEW answers AS
SELECT namespace, job_id, region, model, question, repeat, cell, status,
       CASE WHEN status = 'succeeded' AND length(output) = 0 THEN 'empty' END AS class,
       CAST(output AS TEXT) AS output,
       failure_reason, failure_code, CAST(error_message AS TEXT) AS error_message,
       finish_reason, prompt_tokens, completion_tokens, served_region, region_basis, served_model, executor,
       waited_ms, ran_ms, attempt, agent_id, fencing_token,
       strftime('%Y-%m-%dT%H:%M:%fZ', recorded_at / 1000.0, 'unixepoch') AS recorded_at
FROM executions;
