"""DCP checkpoints in SQLite files on a local disk: ``sqlite://name/prefix`` is the file ``name.db``.

Every call is one transaction on a connection of its own, so threads, processes and crashes need no thought.
An entry is an object (``live``) or an upload that becomes one without a copy; its bytes are in chunks.
"""

import sqlite3
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from dcp_core import errors
from dcp_core.format.checksum import crc32c
from dcp_core.seam import backend as seam
from dcp_core.seam import location, store

DB = sqlite3.Connection

_TABLES = """
PRAGMA journal_mode = WAL;  -- a reader keeps what it began with, whatever is written meanwhile
CREATE TABLE entries (id TEXT PRIMARY KEY, key TEXT, size INTEGER, time REAL, live INTEGER);
CREATE UNIQUE INDEX live_keys ON entries (key) WHERE live;
CREATE TABLE chunks (id TEXT, number INTEGER, data BLOB, PRIMARY KEY (id, number));
CREATE TRIGGER forget AFTER DELETE ON entries BEGIN DELETE FROM chunks WHERE id = old.id; END;
"""
_PIECE = 1 << 20
_OBJECT, _UPLOAD = "key = ? AND live", "key = ? AND id = ? AND NOT live"
#: https://www.sqlite.org/rescode.html
_CODES: dict[int, tuple[type[errors.CloudCheckpointError], str]] = {
    sqlite3.SQLITE_CANTOPEN: (errors.BucketNotFoundError, "no such file: make it with create()"),
    sqlite3.SQLITE_BUSY: (errors.ThrottledError, "another writer holds the file"),
    sqlite3.SQLITE_CORRUPT: (errors.CheckpointCorruptError, "the file is damaged"),
}


class _Reader:
    def __init__(self, info: store.ObjectInfo, pieces: Iterator[bytes]) -> None:
        self.info, self._pieces, self._piece = info, pieces, memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        self._piece = self._piece or memoryview(next(self._pieces, b""))
        count = min(buffer.nbytes, self._piece.nbytes)
        buffer[:count], self._piece = self._piece[:count], self._piece[count:]
        return count


class SQLiteStore(store.ObjectStore):
    limits = store.Limits(1, 512 << 20, 10_000, 1 << 42, 512 << 20)

    def __init__(self, folder: str | Path, bucket: str) -> None:
        self.bucket = bucket
        self._uri = (Path(folder) / f"{bucket}.db").absolute().as_uri()

    def create(self) -> None:
        with closing(sqlite3.connect(f"{self._uri}?mode=rwc", uri=True)) as db:
            db.executescript(_TABLES)

    @contextmanager
    def _transaction(self, key: str | None = None, begin: str = "BEGIN IMMEDIATE") -> Iterator[DB]:
        try:
            with closing(sqlite3.connect(f"{self._uri}?mode=rw", 30, isolation_level=None, uri=True)) as db:
                db.execute(begin)
                yield db
                db.execute("COMMIT")  # closing without it rolls back
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            kind, advice = _CODES.get(code, (errors.ConfigurationError, "SQLite refused"))
            raise kind(f"{advice} ({error})", bucket=self.bucket, key=key) from error

    def _rows(self, db: DB, which: str, *values: str) -> list[store.ObjectInfo]:
        query = f"SELECT key, size, id, time FROM entries WHERE {which} ORDER BY key"
        return [
            store.ObjectInfo(key, size, version, datetime.fromtimestamp(at, timezone.utc))
            for key, size, version, at in db.execute(query, values)
        ]

    def _find(self, db: DB, which: str, key: str, *values: str) -> store.ObjectInfo:
        for info in self._rows(db, which, key, *values):
            return info
        raise errors.ObjectNotFoundError("no such object or upload", bucket=self.bucket, key=key)

    def head(self, key: str) -> store.ObjectInfo:
        with self._transaction(key, "BEGIN") as db:
            return self._find(db, _OBJECT, key)

    def get(self, key: str) -> tuple[bytes, store.ObjectInfo]:
        with self._transaction(key, "BEGIN") as db:
            info = self._find(db, _OBJECT, key)
            return b"".join(_pieces(db, info.version, 0, info.size)), info

    @contextmanager
    def read_range(self, key: str, start: int, stop: int, *, version: str | None = None) -> Iterator[_Reader]:
        with self._transaction(key, "BEGIN") as db:
            info = self._find(db, _OBJECT, key)
            if version not in (None, info.version):
                raise errors.ConflictError("the object is another version", bucket=self.bucket, key=key)
            if start >= info.size:
                raise errors.CheckpointCorruptError("the object ends before", bucket=self.bucket, key=key)
            with closing(_pieces(db, info.version, start, stop)) as pieces:
                yield _Reader(info, pieces)

    def put(self, key: str, body: store.Body, condition: store.Condition | None = None) -> store.ObjectInfo:
        with self._transaction(key) as db:
            held = [info.version for info in self._rows(db, _OBJECT, key)]
            wanted = [condition.version] if isinstance(condition, store.ReplaceVersion) else []
            if condition is not None and held != wanted:
                raise errors.ConflictError("another writer was faster", bucket=self.bucket, key=key)
            upload = self._start(db, key)
            self._add_chunk(db, upload, 1, body)
            return self._publish(db, upload, body.size)

    def _start(self, db: DB, key: str) -> store.Upload:
        upload = store.Upload(key, uuid.uuid4().hex)
        db.execute("INSERT INTO entries VALUES (?, ?, 0, ?, 0)", (upload.upload_id, key, time.time()))
        return upload

    def _add_chunk(self, db: DB, upload: store.Upload, number: int, body: store.Body) -> None:
        values = (upload.upload_id, number, body.size)
        row, crc = db.execute("REPLACE INTO chunks VALUES (?, ?, zeroblob(?))", values).lastrowid, 0
        with db.blobopen("chunks", "data", row or 0) as blob:
            for view in body.buffers:
                blob.write(view)
                crc = crc32c(view, crc)
        if crc != body.crc32c:
            raise errors.TransientError("the bytes changed on their way", bucket=self.bucket, key=upload.key)

    def _publish(self, db: DB, upload: store.Upload, size: int) -> store.ObjectInfo:
        db.execute("DELETE FROM entries WHERE key = ? AND live", (upload.key,))
        values = (size, time.time(), upload.upload_id)
        db.execute("UPDATE entries SET live = 1, size = ?, time = ? WHERE id = ?", values)
        return self._find(db, _OBJECT, upload.key)

    def start_upload(self, key: str) -> store.Upload:
        with self._transaction(key) as db:
            return self._start(db, key)

    def put_part(self, upload: store.Upload, number: int, body: store.Body) -> store.Part:
        with self._transaction(upload.key) as db:
            self._find(db, _UPLOAD, upload.key, upload.upload_id)
            self._add_chunk(db, upload, number, body)
        return store.Part(number, body.size, "", body.crc32c)

    def finish_upload(self, upload: store.Upload, parts: Sequence[store.Part]) -> store.ObjectInfo:
        with self._transaction(upload.key) as db:
            self._find(db, _UPLOAD, upload.key, upload.upload_id)
            query = "SELECT number, length(data) FROM chunks WHERE id = ? ORDER BY number"
            if db.execute(query, (upload.upload_id,)).fetchall() != [(p.number, p.size) for p in parts]:
                raise errors.TransientError("parts are missing", bucket=self.bucket, key=upload.key)
            return self._publish(db, upload, sum(part.size for part in parts))

    def abort_upload(self, upload: store.Upload) -> None:
        with self._transaction(upload.key) as db:
            db.execute("DELETE FROM entries WHERE id = ? AND NOT live", (upload.upload_id,))

    def list(self, prefix: str) -> Iterator[store.ObjectInfo]:
        with self._transaction(prefix, "BEGIN") as db:
            return iter(self._rows(db, "live AND instr(key, ?) = 1", prefix))

    def list_uploads(self, prefix: str) -> Iterator[store.UploadInfo]:
        with self._transaction(prefix, "BEGIN") as db:
            rows = self._rows(db, "NOT live AND instr(key, ?) = 1", prefix)
        return (store.UploadInfo(store.Upload(row.key, row.version), row.modified) for row in rows)

    def delete(self, keys: Sequence[str]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM entries WHERE key = ? AND live", [(key,) for key in keys])

    def close(self) -> None:
        """Nothing is open between calls."""


def _pieces(db: DB, version: str, start: int, stop: int) -> Generator[bytes, None, None]:
    query = "SELECT rowid, length(data) FROM chunks WHERE id = ? ORDER BY number"
    for row, size in db.execute(query, (version,)).fetchall():
        if start < size and stop > 0:
            with db.blobopen("chunks", "data", row, readonly=True) as blob:
                for at in range(max(start, 0), min(stop, size), _PIECE):
                    blob.seek(at)
                    yield blob.read(min(at + _PIECE, stop, size) - at)
        start, stop = start - size, stop - size


@dataclass(frozen=True)
class SQLiteOptions:
    folder: str = "."


class SQLiteBackend(seam.Backend):
    options_type = SQLiteOptions

    def locate(self, url: str) -> location.Location:
        return location.Location.parse(url)

    def open(self, at: location.Location, options: SQLiteOptions, *, concurrency: int) -> store.ObjectStore:
        return SQLiteStore(options.folder, at.bucket)  # connections are per call: no pool to size


backend = SQLiteBackend()
