-- The schema of a new SQLite file: what all migrations together make (a test compares). Statements end with ';' at a line's end.
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE adapters (
    name TEXT NOT NULL,
    live TEXT,
    previous TEXT,
    created_at DOUBLE NOT NULL,
    updated_at DOUBLE NOT NULL,
    canary TEXT,
    canary_percent DOUBLE,
    canary_rules TEXT,
    canary_since DOUBLE,
    owner TEXT,
    rpm INTEGER,
    tpm INTEGER,
    concurrency INTEGER,
    daily_tokens BIGINT,
    CONSTRAINT pk_adapters PRIMARY KEY (name)
);
CREATE TABLE adapter_versions (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL,
    engine_name TEXT NOT NULL,
    base TEXT,
    rank INTEGER NOT NULL,
    size_bytes BIGINT NOT NULL,
    source TEXT NOT NULL,
    notes TEXT NOT NULL,
    wish TEXT NOT NULL,
    damaged BOOLEAN NOT NULL,
    created_at DOUBLE NOT NULL,
    lineage TEXT,
    checksums TEXT,
    proof TEXT,
    thinking BOOLEAN,
    CONSTRAINT pk_adapter_versions PRIMARY KEY (name, version),
    CONSTRAINT fk_adapter_versions_name FOREIGN KEY(name) REFERENCES adapters (name) ON DELETE CASCADE
);
CREATE INDEX ix_adapter_versions_engine_name ON adapter_versions (engine_name);
CREATE TABLE adapter_events (
    id INTEGER NOT NULL,
    at DOUBLE NOT NULL,
    what TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT,
    engine_name TEXT,
    why TEXT NOT NULL,
    actor TEXT,
    CONSTRAINT pk_adapter_events PRIMARY KEY (id)
);
CREATE INDEX ix_adapter_events_name ON adapter_events (name);
CREATE INDEX ix_adapter_events_engine_name ON adapter_events (engine_name);
CREATE TABLE api_keys (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    previous_digest BLOB,
    previous_valid_until DOUBLE,
    scopes TEXT NOT NULL,
    models TEXT,
    rpm INTEGER,
    tpm INTEGER,
    concurrency INTEGER,
    daily_tokens BIGINT,
    expires_at DOUBLE,
    created_at DOUBLE NOT NULL,
    revoked_at DOUBLE,
    CONSTRAINT pk_api_keys PRIMARY KEY (id)
);
CREATE TABLE usage_daily (
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    day TEXT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    CONSTRAINT pk_usage_daily PRIMARY KEY (key_id, model, day)
);
CREATE TABLE revision (
    id INTEGER NOT NULL,
    n BIGINT NOT NULL,
    CONSTRAINT pk_revision PRIMARY KEY (id)
);
CREATE TABLE gateways (
    id TEXT NOT NULL,
    seen_at DOUBLE NOT NULL,
    revision BIGINT NOT NULL,
    lingering TEXT NOT NULL,
    CONSTRAINT pk_gateways PRIMARY KEY (id)
);
CREATE TABLE files (
    id TEXT NOT NULL,
    owner TEXT,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    digest TEXT NOT NULL,
    status TEXT NOT NULL,
    details TEXT,
    created_at DOUBLE NOT NULL,
    expires_at DOUBLE,
    CONSTRAINT pk_files PRIMARY KEY (id)
);
CREATE TABLE jobs (
    id TEXT NOT NULL,
    owner TEXT,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    phase TEXT,
    wish TEXT,
    priority INTEGER NOT NULL,
    recipe TEXT NOT NULL,
    request TEXT,
    settled TEXT,
    progress TEXT,
    outcome TEXT,
    result TEXT,
    error TEXT,
    worker TEXT,
    seen_at DOUBLE,
    attempts INTEGER NOT NULL,
    created_at DOUBLE NOT NULL,
    started_at DOUBLE,
    finished_at DOUBLE,
    CONSTRAINT pk_jobs PRIMARY KEY (id)
);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE TABLE job_events (
    id INTEGER NOT NULL,
    job TEXT NOT NULL,
    at DOUBLE NOT NULL,
    level TEXT NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    data TEXT,
    CONSTRAINT pk_job_events PRIMARY KEY (id)
);
CREATE INDEX ix_job_events_job ON job_events (job);
CREATE TABLE job_checkpoints (
    job TEXT NOT NULL,
    step INTEGER NOT NULL,
    at DOUBLE NOT NULL,
    folder TEXT NOT NULL,
    metrics TEXT NOT NULL,
    version TEXT,
    CONSTRAINT pk_job_checkpoints PRIMARY KEY (job, step)
);
CREATE TABLE feedback (
    id INTEGER NOT NULL,
    at DOUBLE NOT NULL,
    owner TEXT,
    model TEXT NOT NULL,
    version TEXT,
    body TEXT NOT NULL,
    CONSTRAINT pk_feedback PRIMARY KEY (id)
);
CREATE INDEX ix_feedback_model ON feedback (model);
INSERT INTO revision (id, n) VALUES (1, 0);
INSERT INTO alembic_version (version_num) VALUES ('0004');
