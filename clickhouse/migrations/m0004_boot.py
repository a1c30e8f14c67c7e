"""The boot id (R12): a dictionary without a lifetime is loaded at its first use after a start, and then never again."""

from clickhouse.schema import Flavour


def forwards(flavour: Flavour) -> list[str]:
    credentials = ""
    if flavour.user:
        password = flavour.password.replace("\\", "\\\\").replace("'", "\\'")
        credentials = f"USER '{flavour.user}' PASSWORD '{password}' "
    return [
        f"""CREATE DICTIONARY IF NOT EXISTS {flavour.table("boot")}{flavour.on_cluster}
(
    key UInt64,
    id UUID
)
PRIMARY KEY key
SOURCE(CLICKHOUSE({credentials}QUERY 'SELECT toUInt64(0) AS key, generateUUIDv4() AS id'))
LIFETIME(0)
LAYOUT(FLAT())"""
    ]


def backwards(flavour: Flavour) -> list[str]:
    return flavour.drop("boot", "DICTIONARY")
