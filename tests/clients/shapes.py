"""
What Cockpit and blivet send and what they take from the replies, as plain calls through dbus-python.

Each call is made in the shape of one revision, and the types of everything that comes back are compared with what
those clients expect: they are strict about types and lenient about values. Run with the daemon on the bus that
DBUS_SYSTEM_BUS_ADDRESS names; ends with a line for each client.
"""

import os
from xml.etree import ElementTree

import dbus
import dbus.bus
from dbus.lowlevel import MethodCallMessage

NAME = "org.storage.stratis3"
TOP = "/org/storage/stratis3"
PROPERTIES = "org.freedesktop.DBus.Properties"
BUS = dbus.bus.BusConnection(os.environ["DBUS_SYSTEM_BUS_ADDRESS"])

NO_TEXT = (False, "")
NO_CLEVIS = (False, ("", ""))
SIZE = "536870912"

LETTERS = {
    dbus.Boolean: "b",
    dbus.Byte: "y",
    dbus.UInt16: "q",
    dbus.UInt32: "u",
    dbus.UInt64: "t",
    dbus.String: "s",
    dbus.ObjectPath: "o",
}


def kind(value):
    """The type that a value had on the wire; of a variant that of what is inside."""
    if isinstance(value, dbus.Struct):
        return "(" + "".join(kind(member) for member in value) + ")"
    if isinstance(value, dbus.Dictionary):
        return "a{" + str(value.signature) + "}"
    if isinstance(value, dbus.Array):
        return "a" + str(value.signature)
    return LETTERS[type(value)]


def call(path, interface, member, takes, arguments, returns):
    """A call of exactly these types. Gives the values of the reply, which must have these types."""
    message = MethodCallMessage(NAME, path, interface, member)
    message.append(*arguments, signature=takes)
    reply = BUS.send_message_with_reply_and_block(message, 60)
    assert reply.get_signature() == returns, f"{interface}.{member} returns {reply.get_signature()}"
    return reply.get_args_list()


def done(*of_call):
    """The first value of a call that must succeed."""
    value, code, text = call(*of_call)
    assert (code, text) == (0, "Ok"), f"{of_call}: {code} {text}"
    return value


def refused(*of_call):
    """A call that must be refused in a normal reply."""
    _, code, text = call(*of_call)
    assert code == 1 and text not in ("", "Ok"), f"{of_call}: {code} {text}"


def properties(path, interface):
    """All properties of an interface."""
    return call(path, PROPERTIES, "GetAll", "s", (interface,), "a{sv}")[0]


def assert_kinds(found, expected):
    """That these members are there with these types."""
    kinds = {name: kind(found[name]) for name in expected}
    assert kinds == expected, f"{kinds} instead of {expected}"


def objects(interface):
    """Path and properties of each object that has an interface."""
    listing = call(TOP, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "", (), "a{oa{sa{sv}}}")[0]
    return [(path, found[interface]) for path, found in listing.items() if interface in found]


def set_property(path, interface, name, value):
    """Properties.Set as every client makes it. Gives the name of the error, if there is one."""
    try:
        call(path, PROPERTIES, "Set", "ssv", (interface, name, value), "")
        return None
    except dbus.exceptions.DBusException as error:
        return error.get_dbus_name()


FAILED = "org.freedesktop.DBus.Error.Failed"


class Cockpit:
    """Uses one revision for everything."""

    def __init__(self, revision):
        self.revision = revision
        self.pool_name = f"cockpit{revision}"
        self.manager, self.pool, self.filesystem, self.blockdev = (
            f"{NAME}.{family}.r{revision}" for family in ("Manager", "pool", "filesystem", "blockdev")
        )

    def run(self):
        """A pool from its creation to its end."""
        pool = self.create_pool()
        filesystem = self.fill(pool)
        self.look(pool, filesystem)
        self.settings(pool, filesystem)
        if self.revision >= 2:
            pool = self.stop_and_start(pool)
        mine = [path for path, found in objects(self.filesystem) if found["Pool"] == pool]
        done(pool, self.pool, "DestroyFilesystems", "ao", (mine,), "(bas)qs")
        done(TOP, self.manager, "DestroyPool", "o", (pool,), "(bs)qs")
        assert not objects(self.pool)

    def create_pool(self):
        """CreatePool without encryption."""
        name, devices = self.pool_name, [f"/dev/{self.pool_name}"]
        if self.revision <= 4:
            takes = "s(bq)as(bs)(b(ss))"
            arguments = (name, (False, 0), devices, NO_TEXT, NO_CLEVIS)
        elif self.revision <= 7:
            takes, arguments = "sas(bs)(b(ss))", (name, devices, NO_TEXT, NO_CLEVIS)
        else:
            takes = "sasa((bu)s)a((bu)ss)(bt)(bs)(bb)"
            arguments = (name, devices, [], [], (False, 0), NO_TEXT, (False, False))
        changed, (pool, made) = done(TOP, self.manager, "CreatePool", takes, arguments, "(b(oao))qs")
        assert changed and len(made) == 1
        return pool

    def fill(self, pool):
        """A filesystem and a snapshot of it."""
        spec, takes = ("f", (True, SIZE)), "a(s(bs))"
        if self.revision >= 6:
            spec, takes = (*spec, NO_TEXT), "a(s(bs)(bs))"
        changed, ((path, name),) = done(pool, self.pool, "CreateFilesystems", takes, ([spec],), "(ba(os))qs")
        assert changed and name == "f"
        changed, _ = done(pool, self.pool, "SnapshotFilesystem", "os", (path, "s"), "(bo)qs")
        assert changed
        return path

    def look(self, pool, filesystem):
        """The properties that are shown, by their types."""
        shown = {"Uuid": "s", "Name": "s", "Encrypted": "b", "AvailableActions": "s", "HasCache": "b"}
        shown |= {"TotalPhysicalSize": "s", "TotalPhysicalUsed": "(bs)", "AllocatedSize": "s"}
        if self.revision >= 1:
            shown |= {"NoAllocSpace": "b", "FsLimit": "t", "Overprovisioning": "b"}
        if self.revision <= 7:
            shown |= {"KeyDescription": "(b(bs))", "ClevisInfo": "(b(b(ss)))"}
        else:
            shown |= {"KeyDescriptions": "s", "ClevisInfos": "s", "FreeTokenSlots": "(by)", "MetadataVersion": "t"}
        assert_kinds(properties(pool, self.pool), shown)
        shown = {"Pool": "o", "Name": "s", "Devnode": "s", "Created": "s", "Size": "s", "Used": "(bs)"}
        if self.revision >= 6:
            shown["SizeLimit"] = "(bs)"
        assert_kinds(properties(filesystem, self.filesystem), shown)
        shown = {"Pool": "o", "Devnode": "s", "PhysicalPath": "s", "TotalPhysicalSize": "s", "Tier": "q"}
        if self.revision >= 3:
            shown["NewPhysicalSize"] = "(bs)"
        ((_, device),) = objects(self.blockdev)
        assert_kinds(device, shown)
        assert device["Pool"] == pool

    def settings(self, pool, filesystem):
        """What is set, and the one error name that a rejected value has."""
        if self.revision >= 1:
            assert set_property(pool, self.pool, "FsLimit", dbus.UInt64(101)) is None
            assert set_property(pool, self.pool, "FsLimit", dbus.UInt64(1)) == FAILED
            assert set_property(pool, self.pool, "Overprovisioning", dbus.Boolean(False)) is None
        if self.revision >= 6:
            limit = dbus.Struct((True, SIZE), signature="bs")
            assert set_property(filesystem, self.filesystem, "SizeLimit", limit) is None
            limit = dbus.Struct((True, "1"), signature="bs")
            assert set_property(filesystem, self.filesystem, "SizeLimit", limit) == FAILED

    def stop_and_start(self, pool):
        """By path or by name, and how the pool is listed between."""
        if self.revision <= 5:
            done(TOP, self.manager, "StopPool", "o", (pool,), "(bs)qs")
        else:
            done(TOP, self.manager, "StopPool", "ss", (self.pool_name, "name"), "(bs)qs")
        stopped = properties(TOP, self.manager)["StoppedPools"]
        assert kind(stopped) == "a{sa{sv}}"
        ((uuid, entry),) = stopped.items()
        shown = {"name": "s", "devs": "aa{ss}"}
        if self.revision >= 8:
            shown |= {"metadata_version": "(bt)", "features": "(ba{sb})"}
        assert_kinds(entry, shown)
        assert set(entry) == set(shown), "nothing about encryption, and nothing of later revisions"
        assert entry["name"] == self.pool_name
        returns = "(b(oaoao))qs"
        if self.revision <= 7:
            takes = "ss(bs)"
            refused(TOP, self.manager, "StartPool", takes, (uuid, "uuid", (True, "keyring")), returns)
            arguments = (uuid, "uuid", NO_TEXT)
        else:
            takes = "ss(b(bu))(bh)"
            arguments = (uuid, "uuid", (False, (False, 0)), (False, dbus.types.UnixFd(0)))
        changed, (pool, devices, filesystems) = done(TOP, self.manager, "StartPool", takes, arguments, returns)
        assert changed and len(devices) == 1 and len(filesystems) == 2
        return pool


def blivet():
    """Uses r0, and r8 to start and to stop, where introspection says that it is there."""
    xml = call(TOP, "org.freedesktop.DBus.Introspectable", "Introspect", "", (), "s")[0]
    # As GIO does: the interfaces of the node itself, not those of nodes below.
    direct = [interface.get("name") for interface in ElementTree.fromstring(xml).findall("interface")]
    for revision in range(10):
        assert f"{NAME}.Manager.r{revision}" in direct
    old, new = f"{NAME}.Manager.r0", f"{NAME}.Manager.r8"
    arguments = ("blivet", (False, 0), ["/dev/blivet"], NO_TEXT, NO_CLEVIS)
    changed, (pool, _) = done(TOP, old, "CreatePool", "s(bq)as(bs)(b(ss))", arguments, "(b(oao))qs")
    assert changed
    changed, _ = done(pool, f"{NAME}.pool.r0", "CreateFilesystems", "a(s(bs))", ([("f", (True, SIZE))],), "(ba(os))qs")
    assert changed
    shown = {"Name": "s", "Uuid": "s", "Encrypted": "b", "ClevisInfo": "(b(b(ss)))"}
    shown |= {"TotalPhysicalSize": "s", "TotalPhysicalUsed": "(bs)"}
    assert_kinds(properties(pool, f"{NAME}.pool.r0"), shown)
    ((filesystem, found),) = objects(f"{NAME}.filesystem.r0")
    assert_kinds(found, {"Name": "s", "Uuid": "s", "Pool": "o", "Used": "(bs)", "Size": "s", "Devnode": "s"})
    ((_, found),) = objects(f"{NAME}.blockdev.r0")
    assert_kinds(found, {"Devnode": "s", "Uuid": "s", "Pool": "o"})
    assert kind(properties(TOP, old)["LockedPools"]) == "a{sa{sv}}"

    done(TOP, new, "StopPool", "ss", ("blivet", "name"), "(bs)qs")
    ((uuid, entry),) = properties(TOP, new)["StoppedPools"].items()
    assert_kinds(entry, {"name": "s", "devs": "aa{ss}", "features": "(ba{sb})"})
    arguments = (uuid, "uuid", (False, (False, 0)), (False, dbus.types.UnixFd(0)))
    _, (pool, _, (filesystem,)) = done(TOP, new, "StartPool", "ss(b(bu))(bh)", arguments, "(b(oaoao))qs")
    done(pool, f"{NAME}.pool.r0", "DestroyFilesystems", "ao", ([filesystem],), "(bas)qs")
    done(TOP, old, "DestroyPool", "o", (pool,), "(bs)qs")


def main():
    """Every shape that is in use."""
    for revision in (0, 4, 5, 6, 8):
        Cockpit(revision).run()
        print(f"cockpit r{revision}")
    blivet()
    print("blivet")


main()
