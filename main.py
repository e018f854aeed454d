"""Command line: python main.py {prepare,fit,validate,test,predict,sweep,tables,figures,report} ..."""

from plif_lightning.cli import main

if __name__ == "__main__":
    main()
