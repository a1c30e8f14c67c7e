"""The store: schema, migrations, client, queries, and the embedded server."""
