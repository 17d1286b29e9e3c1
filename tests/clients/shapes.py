"""
What Cockpit and blivet send and what they take from the replies, as plain calls through dbus-python.

Each call is made in the shape of one revision, and the types of everything that comes back are compared with what
those clients expect: they are strict about types and lenient about values. Run with the daemon on the bus that
DBUS_SYSTEM_BUS_ADDRESS names; ends with a line for each client.
"""

import os
import tempfile
from contextlib import contextmanager
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
        return "(" + "".join("v" if member.variant_level else kind(member) for member in value) + ")"
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

KEY, PIN, CONFIGURATION = "key", "tang", '{"thp":"abc","url":"http://x"}'
SECRET = b"secret"


@contextmanager
def pipe():
    """A passphrase in a pipe whose other end stays open."""
    reader, writer = os.pipe()
    os.write(writer, SECRET)
    yield dbus.types.UnixFd(reader)
    os.close(reader)
    os.close(writer)


@contextmanager
def file():
    """A passphrase in a file."""
    with tempfile.TemporaryFile() as holding:
        holding.write(SECRET)
        holding.seek(0)
        yield dbus.types.UnixFd(holding)


def set_key(manager, passphrase):
    """SetKey with what a person typed or a file holds; new, and not new once more."""
    for expected in ((True, False), (False, False)):
        with passphrase() as descriptor:
            assert done(TOP, manager, "SetKey", "sh", (KEY, descriptor), "(bb)qs") == expected
    assert done(TOP, manager, "ListKeys", "", (), "asqs") == [KEY]


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

    def create_pool(self, encrypted=False):
        """CreatePool without encryption, or with a key and Clevis."""
        name, devices = self.pool_name, [f"/dev/{self.pool_name}"]
        key, clevis = ((True, KEY), (True, (PIN, CONFIGURATION))) if encrypted else (NO_TEXT, NO_CLEVIS)
        if self.revision <= 4:
            takes = "s(bq)as(bs)(b(ss))"
            arguments = (name, (False, 0), devices, key, clevis)
        elif self.revision <= 7:
            takes, arguments = "sas(bs)(b(ss))", (name, devices, key, clevis)
        else:
            takes = "sasa((bu)s)a((bu)ss)(bt)(bs)(bb)"
            keys = [((False, 0), KEY)] if encrypted else []
            clevises = [((False, 0), PIN, CONFIGURATION)] if encrypted else []
            arguments = (name, devices, keys, clevises, (False, 0), NO_TEXT, (False, False))
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

    def run_encrypted(self):
        """An encrypted pool from its key to its end."""
        set_key(self.manager, pipe)
        pool = self.create_pool(encrypted=True)
        self.look_at_bindings(pool)
        self.bind(pool)
        pool = self.stop_and_unlock()
        done(TOP, self.manager, "DestroyPool", "o", (pool,), "(bs)qs")
        assert done(TOP, self.manager, "UnsetKey", "s", (KEY,), "bqs")

    def look_at_bindings(self, pool):
        """What is shown of the key and of Clevis."""
        found = properties(pool, self.pool)
        assert found["Encrypted"]
        if self.revision <= 7:
            assert_kinds(found, {"KeyDescription": "(b(bs))", "ClevisInfo": "(b(b(ss)))"})
            assert found["KeyDescription"] == (True, (True, KEY))
            assert found["ClevisInfo"] == (True, (True, (PIN, CONFIGURATION)))
        else:
            assert_kinds(found, {"KeyDescriptions": "a(us)", "ClevisInfos": "a(u(ss))", "FreeTokenSlots": "(by)"})
            assert list(found["KeyDescriptions"]) == [(0, KEY)]
            assert list(found["ClevisInfos"]) == [(1, (PIN, CONFIGURATION))]
            assert found["FreeTokenSlots"] == (True, 13)
            assert kind(found["VolumeKeyLoaded"]) == "b"

    def bind(self, pool):
        """Taking away each way in, and giving it back."""
        slot, any_slot = ("", ()) if self.revision <= 7 else ("(bu)", ((False, 0),))
        calls = (
            ("RebindKeyring", "s", (KEY,), False),
            ("RebindClevis", "", (), True),
            ("UnbindClevis", "", (), True),
            ("BindClevis", "ss", (PIN, CONFIGURATION), True),
            ("UnbindKeyring", "", (), True),
            ("BindKeyring", "s", (KEY,), True),
        )
        for member, takes, arguments, changes in calls:
            changed = done(pool, self.pool, member, takes + slot, (*arguments, *any_slot), "bqs")
            assert changed == changes, member
        self.look_at_bindings(pool)

    def stop_and_unlock(self):
        """How the pool is listed, and each way to unlock it."""
        ways = [(True, "keyring"), (True, "clevis")] if self.revision <= 7 else [(True, (False, 0)), (True, (True, 0))]
        for way in ways:
            # Until r1 there was no way to stop a pool.
            manager = self.manager if self.revision >= 6 else f"{NAME}.Manager.r6"
            stopped, uuid = done(TOP, manager, "StopPool", "ss", (self.pool_name, "name"), "(bs)qs")
            assert stopped
            if self.revision <= 1:
                pool = self.unlock(uuid, way[1])
            else:
                self.look_at_stopped(uuid)
                pool = self.start(uuid, way)
        return pool

    def look_at_stopped(self, uuid):
        """The types are tested for in the client."""
        entry = properties(TOP, self.manager)["StoppedPools"][uuid]
        shown = {"name": "s", "devs": "aa{ss}", "key_description": "(bv)", "clevis_info": "(bv)"}
        if self.revision >= 8:
            shown |= {"metadata_version": "(bt)", "features": "(ba{sb})"}
            features = {"encryption": True, "key_description_present": True, "clevis_present": True}
            assert entry["features"] == (True, features)
        assert_kinds(entry, shown)
        assert set(entry) == set(shown)
        assert kind(entry["key_description"][1]) == "(bs)" and kind(entry["clevis_info"][1]) == "(b(ss))"

    def unlock(self, uuid, method):
        """UnlockPool; the pool is there when it is answered."""
        unlocked, devices = done(TOP, self.manager, "UnlockPool", "ss", (uuid, method), "(bas)qs")
        assert unlocked and len(devices) == 1
        ((pool, _),) = objects(self.pool)
        return pool

    def start(self, uuid, way):
        """StartPool, refused without a way in; since r8 with the passphrase itself."""
        returns = "(b(oaoao))qs"
        with pipe() as passphrase:
            if self.revision <= 7:
                takes, none, unlocking = "ss(bs)", (uuid, "uuid", NO_TEXT), (uuid, "uuid", way)
            else:
                takes = "ss(b(bu))(bh)"
                none = (uuid, "uuid", (False, (False, 0)), (False, dbus.types.UnixFd(0)))
                unlocking = (uuid, "uuid", way, (True, passphrase))
            refused(TOP, self.manager, "StartPool", takes, none, returns)
            changed, (pool, devices, _) = done(TOP, self.manager, "StartPool", takes, unlocking, returns)
        assert changed and len(devices) == 1
        return pool


def blivet_encrypted():
    """A pool with a key and Clevis, unlocked through r0 and started through r8."""
    old, new = f"{NAME}.Manager.r0", f"{NAME}.Manager.r8"
    set_key(old, file)
    clevis = (True, (PIN, CONFIGURATION))
    arguments = ("blivet", (False, 0), ["/dev/blivet"], (True, KEY), clevis)
    changed, (pool, _) = done(TOP, old, "CreatePool", "s(bq)as(bs)(b(ss))", arguments, "(b(oao))qs")
    assert changed
    found = properties(pool, f"{NAME}.pool.r0")
    assert_kinds(found, {"Encrypted": "b", "KeyDescription": "(b(bs))", "ClevisInfo": "(b(b(ss)))"})
    assert found["Encrypted"] and found["ClevisInfo"] == (True, clevis)
    for method in ("keyring", "clevis"):
        _, uuid = done(TOP, new, "StopPool", "ss", ("blivet", "name"), "(bs)qs")
        entry = properties(TOP, new)["StoppedPools"][uuid]
        assert_kinds(entry, {"name": "s", "devs": "aa{ss}", "features": "(ba{sb})"})
        assert entry["features"][1]["encryption"]
        unlocked, devices = done(TOP, old, "UnlockPool", "ss", (uuid, method), "(bas)qs")
        assert unlocked and len(devices) == 1
    done(TOP, new, "StopPool", "ss", ("blivet", "name"), "(bs)qs")
    arguments = (uuid, "uuid", (True, (False, 0)), (False, dbus.types.UnixFd(0)))
    changed, (pool, *_) = done(TOP, new, "StartPool", "ss(b(bu))(bh)", arguments, "(b(oaoao))qs")
    assert changed
    done(TOP, old, "DestroyPool", "o", (pool,), "(bs)qs")
    assert done(TOP, old, "UnsetKey", "s", (KEY,), "bqs")


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
        Cockpit(revision).run_encrypted()
        print(f"cockpit r{revision}")
    blivet_encrypted()
    blivet()
    print("blivet")


main()
