"""`python -m appliance.cli`: the same as `appliance`, where that is not on the PATH."""

import sys

from appliance.cli import main

if __name__ == "__main__":
    sys.exit(main())
