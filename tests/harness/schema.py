"""The product's schema in a test database, for services that run without the scheduler."""
from .process import ROOT


def apply_schema(postgres, database):
    """What the scheduler's migration leaves behind; nothing when it is there already."""
    connection = postgres.connect(database, "hypersdk_owner")
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT to_regclass('schema_version') IS NOT NULL")
        if cursor.fetchone()[0]:
            return
        cursor.execute("CREATE TABLE schema_version (version integer PRIMARY KEY,"
                       " name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())")
        cursor.execute("GRANT SELECT ON schema_version TO PUBLIC")
        for path in sorted((ROOT / "common" / "schema").glob("*.sql")):
            cursor.execute(path.read_text())
            cursor.execute("INSERT INTO schema_version (version, name) VALUES (%s, %s)",
                           (int(path.name.split("_")[0]), path.stem))
    finally:
        connection.close()
