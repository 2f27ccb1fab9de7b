"""`python -m encsearch`: in a job, the copy of the code that travelled with it, or else the installed one."""

from encsearch.cli.main import main

if __name__ == "__main__":
    main()
