from dcp_azure import AzureStorageReader, AzureStorageWriter
from dcp_core import CloudStorageWriter
from dcp_gcs import GCSStorageReader, GCSStorageWriter
from dcp_http import HTTPStorageReader
from dcp_s3 import S3StorageReader, S3StorageWriter

S3StorageWriter("s3://bucket/run", sse="rot13")  # no such encryption
S3StorageWriter("s3://bucket/run", part_sise=5)  # no such option
S3StorageReader("s3://bucket/run", overwrite=True)  # an option of writers
S3StorageReader("s3://bucket/run", concurrency="many")  # not a number
number: int = CloudStorageWriter("s3://bucket/run").checkpoint_id  # a str
GCSStorageWriter("gs://bucket/run", sse="AES256")  # an option of S3
GCSStorageReader("gs://bucket/run", anonymous="yes")  # not a bool
AzureStorageWriter("az://container/run", access_tier="Archive")  # not readable
AzureStorageReader("az://container/run", account_key=5)  # not a str
HTTPStorageReader("https://host/run", part_size=5)  # an option of writers
HTTPStorageReader("https://host/run", headers=["X-Key: 1"])  # not a mapping
